"""The report of a profile: report.html, heatmap.svg and report.json in its folder, and what is printed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minllm.errors import printable
from minllm.page.html import document, escape, table
from minllm.page.markdown import fit_to_width
from minllm.page.terminal import answer
from minllm.runs.folder import to_json, write_text
from minllm.study.profile import sentences
from minllm.study.profile.cells import Cell, Profile
from minllm.study.profile.curves import difficulty_curves
from minllm.study.profile.heatmap import heatmap
from minllm.study.report.sentences import TIME_WAS_UP

FORMAT = 1
STYLE = """
body { max-width: 76rem; }
p, ul { max-width: 46rem; }
svg { max-width: 100%; height: auto; }
.scroll table { font: 14px/1.4 system-ui, sans-serif; white-space: nowrap; }
"""


def write_and_print(profile: Profile, folder: Path) -> None:
    """Write the report to a folder, print its summary, and answer --json. OSError if a file can't be written."""
    folder.mkdir(parents=True, exist_ok=True)
    content = data(profile)
    texts = {"report.html": page(profile), "report.json": to_json(content), "heatmap.svg": heatmap(profile)}
    for name, text in texts.items():
        write_text(folder / name, text)
    print(printable("\n".join(in_a_terminal(profile))))
    print(printable(f"Report: {', '.join(str(folder / name) for name in texts)}"), flush=True)
    answer({**content, "report": str(folder / "report.json")})


def in_a_terminal(profile: Profile) -> Iterator[str]:
    """Yield the lines of the summary."""
    yield sentences.headline(profile)
    yield ""
    head = ["accuracy in %", "chance", *profile.mixers]
    rows = []
    for probe in profile.probes:
        shown = (_short(profile.cells[mixer, probe.name]) for mixer in profile.mixers)
        rows.append([probe.name, _percent(probe.chance), *shown])
    width = shutil.get_terminal_size((80, 24)).columns
    yield from fit_to_width(head, rows, "l" + "r" * (len(head) - 1), width)
    yield ""
    yield f"✓ marks what is solved. {sentences.ABOUT_STATES}"
    for name, lines in sentences.by_probe(profile):
        yield f"{name}:"
        yield from (f"- {line}" for line in lines)
    if not profile.is_complete:
        yield TIME_WAS_UP


def _short(cell: Cell) -> str:
    if cell.estimate is None:
        return "diverged" if cell.lost else "not run"
    return f"{100 * cell.estimate.value:.1f}{' ✓' if cell.state == 'solved' else ''}"


def page(profile: Profile) -> str:
    """Return report.html."""
    body = [
        f"<h1>{escape(sentences.headline(profile))}</h1>",
        f"<p>{escape(sentences.introduction(profile))}</p>",
        f'<div class="scroll" tabindex="0">{heatmap(profile)}</div>',
        f"<p>{escape(' '.join([sentences.ABOUT_ACCURACY, sentences.ABOUT_STATES]))}</p>",
        f'<p class="soft">{escape(sentences.ABOUT_INTERVALS)}</p>',
        *_scores(profile),
        "<h2>In words</h2>",
    ]
    for name, lines in sentences.by_probe(profile):
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        body.append(f"<h3>{escape(name)}</h3><ul>{items}</ul>")
    body += [
        "<h2>Runs</h2>",
        table(*_runs(profile)),
        "<h2>Again</h2>",
        f"<pre>{escape(profile.command)}</pre>",
    ]
    return document("Profile", body, STYLE, plots=False)


def _scores(profile: Profile) -> Iterator[str]:
    """Yield the difficulty curves, and the mean over difficulties of each task that has several."""
    curves = difficulty_curves(profile)
    if curves:
        yield "<h2>Difficulty</h2>"
        yield from (f"<p>{curve}</p>" for curve in curves.values())
    several = [task for task, probes in profile.tasks.items() if len(probes) > 1]
    if several:
        rows = [
            [escape(mixer), *(_percent(profile.score(mixer, task)) for task in several)]
            for mixer in profile.mixers
        ]
        yield "<p>The mean accuracy over a task's difficulties, which is MAD's score (2403.17844), in %:</p>"
        yield table(["mixer", *map(escape, several)], rows, "l" + "r" * len(several))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _runs(profile: Profile) -> tuple[list[str], list[list[str]], str]:
    head = [
        "mixer",
        "probe",
        "seed",
        "accuracy, %",
        "interval",
        "exact, %",
        "steps",
        "tuned values",
        "folder",
    ]
    rows = []
    for cell in profile.cells.values():
        values = " ".join(cell.tuning.overrides) if cell.tuning else ""
        for run in cell.runs:
            low, high = run.interval
            rows.append(
                [
                    *(
                        escape(cell.mixer),
                        escape(cell.probe.name),
                        str(run.seed),
                        f"{100 * run.accuracy:.2f}",
                    ),
                    *(f"{100 * low:.1f} to {100 * high:.1f}", _percent(run.exact), f"{run.steps:,}"),
                    *(f"<code>{escape(values)}</code>", f"<code>{escape(run.folder)}</code>"),
                ]
            )
    return head, rows, "llrrrrrll"


def data(profile: Profile) -> dict[str, Any]:
    """Return the contents of report.json."""
    return {
        "format": FORMAT,
        "status": "complete" if profile.is_complete else "incomplete",
        "headline": sentences.headline(profile),
        "introduction": sentences.introduction(profile),
        "mixers": list(profile.mixers),
        "probes": [
            {
                **{
                    name: getattr(probe, name) for name in ("name", "task", "difficulty", "chance", "ceiling")
                },
                "overrides": list(probe.overrides),
            }
            for probe in profile.probes
        ],
        "cells": [_cell(profile, cell) for cell in profile.cells.values()],
        "scores": {
            task: {mixer: profile.score(mixer, task) for mixer in profile.mixers}
            for task, probes in profile.tasks.items()
            if len(probes) > 1
        },
        "command": profile.command,
    }


def _cell(profile: Profile, cell: Cell) -> dict[str, Any]:
    estimate, tuning = cell.estimate, cell.tuning
    return {
        "mixer": cell.mixer,
        "probe": cell.probe.name,
        "state": cell.state,
        "sentence": sentences.of_cell(cell),
        "accuracy": estimate and estimate.value,
        "interval": estimate and list(estimate.interval),
        "seeds_planned": cell.planned,
        "seeds_solved": len(cell.solved),
        "seeds_lost": list(cell.lost),
        "params": profile.params.get((cell.mixer, cell.probe.name)),
        "runs": [
            {"seed": run.seed, "accuracy": run.accuracy, "interval": list(run.interval), "exact": run.exact}
            | {"steps": run.steps, "folder": run.folder}
            for run in cell.runs
        ],
        "tuned": tuning and dict(tuning.chosen),
        "tuning_runs": tuning and tuning.runs,
        "tuning_unsettled": tuning and tuning.unsettled,
    }
