"""The report of a study of learning rates: report.html and report.json in its folder, and what is printed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minllm.page import units
from minllm.page.html import document, escape, figure_html, table
from minllm.page.markdown import fit_to_width
from minllm.study.contest import Contest
from minllm.study.intervals import mean_of
from minllm.study.rates.curves import Measure, RateStudy
from minllm.study.report.figures import LEGEND, MARGIN, banded, layout, wrapped
from minllm.study.report.publishing import publish
from minllm.study.report.sentences import TIME_WAS_UP
from minllm.study.verdict import Word

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FORMAT = 1
ABOUT: Mapping[Measure, str] = {
    "sensitivity": (
        "Sensitivity to the learning rate (2309.14322) is the mean over the rates of the loss, or of the loss at"
        " initialisation where this is lower, minus the best loss: how much an average rate loses against the best."
        " A run that diverged counts as the loss at initialisation."
    ),
    "shift": (
        "The shift is how far the best learning rate moves from the smallest to the largest size, in octaves, either"
        " way: one octave is a factor of 2 (2203.03466). The best rate of a seed is the minimum of a quadratic through"
        " its lowest loss and the losses at neighbouring rates. A rate above one that diverged doesn't count."
        " The noise of best rates counts as a shift too."
    ),
}
ANSWERS: Mapping[Measure, Mapping[Word, str]] = {
    "sensitivity": {
        "better": "{arm} is less sensitive to the learning rate than {baseline}.",
        "worse": "{arm} is more sensitive to the learning rate than {baseline}.",
        "equivalent": "{arm} is as sensitive to the learning rate as {baseline}.",
        "inconclusive": "Sensitivity of {arm} against {baseline}: inconclusive.",
    },
    "shift": {
        "better": "The best learning rate of {arm} moves less with the size than that of {baseline}.",
        "worse": "The best learning rate of {arm} moves more with the size than that of {baseline}.",
        "equivalent": "The best learning rate of {arm} moves as far with the size as that of {baseline}.",
        "inconclusive": "Shift of {arm} against {baseline}: inconclusive.",
    },
}


def write_and_print(study: RateStudy, folder: Path) -> None:
    """Write the report to a folder, print its summary, and answer --json. OSError if a file can't be written."""
    publish(folder, page(study), data(study), in_a_terminal(study))


# ---- sentences -----------------------------------------------------------------------------------


def first_sentence(study: RateStudy, contest: Contest) -> str:
    answers = ANSWERS[study.measure]
    return answers[contest.verdict.word].format(arm=contest.arm.name, baseline=contest.baseline.name)


def sentence(study: RateStudy, contest: Contest) -> str:
    """Return what a contest found, with its numbers."""
    verdict = contest.verdict
    return " ".join(filter(None, [first_sentence(study, contest), verdict.why, verdict.settling]))


def headline(study: RateStudy) -> str:
    return " ".join(first_sentence(study, contest) for contest in study.contests)


def introduction(study: RateStudy) -> str:
    first = next(iter(study.curves.values()))
    rates = f" at {len(first[0].losses)} learning rates" if first else ""
    sizes = f" and {len(study.sizes)} sizes" if len(study.sizes) > 1 else ""
    seeds = f"{study.pairs} of {study.seeds} seeds, the same for all"
    return f"{len(study.arms)} arms{rates}{sizes}, {study.equal}; {seeds}."


def warnings(study: RateStudy) -> list[str]:
    """Return what makes values less certain than their intervals."""
    found = []
    for arm in study.arms:
        values = study.values(arm)
        if lost := sum(map(math.isinf, values)):
            found.append(f"{arm}: no learning rate trains it with {lost} of {len(values)} seeds.")
        if study.measure == "shift" and (edges := study.at_edge(arm)):
            found.append(
                f"{arm}: with {edges} of {len(values)} seeds a best rate is the lowest or the highest that was tried,"
                " so it may be further away. Try more in search.rates."
            )
    return found


# ---- a terminal ----------------------------------------------------------------------------------


def in_a_terminal(study: RateStudy) -> Iterator[str]:
    """Yield the lines of the summary."""
    yield headline(study)
    yield from (f"WARNING: {warning}" for warning in warnings(study))
    yield ""
    yield from (f"- {sentence(study, contest)}" for contest in study.contests)
    yield ""
    head, rows = value_rows(study)
    width = shutil.get_terminal_size((80, 24)).columns
    yield from fit_to_width(head, rows, "l" + "r" * (len(head) - 1), width)
    yield ""
    head, rows = loss_rows(study)
    yield from fit_to_width(head, rows, "l" + "r" * (len(head) - 1), width)
    yield f"{introduction(study)} {ABOUT[study.measure]}"
    if not study.is_complete:
        yield TIME_WAS_UP


def value_rows(study: RateStudy) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of values."""
    rows = []
    for arm in study.arms:
        found = study.estimate(arm)
        value, interval = (f"{found.value:.4f}", found.interval) if found else (units.NONE, ())
        rows.append([arm, value, units.between(interval) if interval else units.NONE])
    return ["arm", f"{study.measure}, {study.unit}", "95 % interval"], rows


def loss_rows(study: RateStudy) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of mean losses: a row for each rate of each arm and size."""
    rows = []
    for (arm, size), curves in study.curves.items():
        for at, rate in enumerate(curves[0].losses if curves else ()):
            losses = [list(curve.losses.values())[at] for curve in curves]
            known = [loss for loss in losses if loss is not None]
            mean = units.bits(math.fsum(known) / len(known)) if known else units.NONE
            rows.append([named(arm, size), units.rate(rate), mean, str(len(losses) - len(known))])
    return ["arm", "learning rate", "bits per byte", "diverged"], rows


def named(arm: str, size: str) -> str:
    return f"{arm} at {size}" if size else arm


# ---- the page ------------------------------------------------------------------------------------


def page(study: RateStudy) -> str:
    """Return report.html."""
    verdicts = "".join(f"<li>{escape(sentence(study, contest))}</li>" for contest in study.contests)
    body = [
        f"<h1>{escape(headline(study))}</h1>",
        *(f"<p><b>{escape(warning)}</b></p>" for warning in warnings(study)),
        f"<ul>{verdicts}</ul>",
        f"<p>{escape(introduction(study))}</p>",
        *([f"<p>{escape(TIME_WAS_UP)}</p>"] if not study.is_complete else []),
        *([figure_html(figure(study), "rates")] if study.pairs else []),
        f'<p class="soft">{escape(ABOUT[study.measure])}</p>',
        f"<h2>{escape(study.measure.capitalize())}</h2>",
        html_table(*value_rows(study)),
        "<h2>Losses</h2>",
        html_table(*loss_rows(study)),
        "<h2>Again</h2>",
        f"<pre>{escape(study.command)}</pre>",
    ]
    return document("Learning rates", body)


def html_table(head: list[str], rows: list[list[str]]) -> str:
    cells = [[escape(cell) for cell in row] for row in rows]
    return table([*map(escape, head)], cells, "l" + "r" * (len(head) - 1))


def figure(study: RateStudy) -> Figure:
    """Return the curves of loss against learning rate, with bands of the mean over seeds."""
    from plotly.graph_objects import Figure

    traces = []
    for index, ((arm, size), curves) in enumerate(study.curves.items()):
        points = {}
        for rate, losses in zip(curves[0].losses, zip(*(curve.capped for curve in curves))):
            if known := [loss for loss in losses if loss is not None]:
                points[rate] = mean_of(known)
        ends = [
            [
                point.interval[end] if math.isfinite(point.interval[end]) else point.value
                for point in points.values()
            ]
            for end in (0, 1)
        ]
        means = [point.value for point in points.values()]
        traces += banded(named(arm, size), index, list(points), means, (ends[0], ends[1]))
    made = Figure(traces)
    lines = sum(1 + wrapped(named(*key)).count("<br>") for key in study.curves)
    made.update_layout(**layout(height=420 + 22 * lines), hovermode="closest")
    made.update_layout(margin=MARGIN, legend=LEGEND)
    made.update_xaxes(title_text="learning rate", type="log")
    made.update_yaxes(title_text="bits per byte")
    return made


# ---- JSON ----------------------------------------------------------------------------------------


def data(study: RateStudy) -> dict[str, Any]:
    """Return the contents of report.json."""
    return {
        "format": FORMAT,
        "status": "settled" if study.is_answered else "not settled",
        "complete": study.is_complete,
        "headline": headline(study),
        "introduction": introduction(study),
        "warnings": warnings(study),
        "measure": study.measure,
        "unit": study.unit,
        "margin": study.margin,
        "contests": [
            {
                "arm": contest.arm.name,
                "baseline": contest.baseline.name,
                "outcome": contest.outcome,
                "sentence": sentence(study, contest),
                "verdict": asdict(contest.verdict),
                "pairs": [{"seed": seed, "difference": value} for seed, value in contest.differences.items()],
            }
            for contest in study.contests
        ],
        "arms": [
            {"arm": arm, "values": study.values(arm), **_estimate(study, arm), "at_edge": study.at_edge(arm)}
            for arm in study.arms
        ],
        "curves": [
            {
                "arm": arm,
                "size": size,
                "seed": curve.seed,
                "start": curve.start,
                "best": curve.best,
                "at_edge": curve.at_edge,
                "losses": [{"rate": rate, "val_bpb": loss} for rate, loss in curve.losses.items()],
            }
            for (arm, size), curves in study.curves.items()
            for curve in curves
        ],
        "command": study.command,
    }


def _estimate(study: RateStudy, arm: str) -> dict[str, Any]:
    found = study.estimate(arm)
    return {"mean": found and found.value, "interval": found and list(found.interval)}
