"""A grid, `python run.py -m …`: what a logger calls its runs, and the table that it ends with.

The table is a first look. Runs that differ in their seed alone are one row, with their mean and standard deviation.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import textwrap
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from minllm.data.floor import below_floor
from minllm.page.markdown import code, table
from minllm.schema.overrides import PLAIN, in_quotes, is_seed, key_of

HEAD = ["", "params", "val_bpb", "tokens/s", "state, bytes"]
ABOVE_FLOOR = "above the floor"
FIGURES = ("val_bpb", "params", "tokens", "tokens_per_second", "seed")
SHORTEST = 12  # characters of an arm's words that stay


def name_for_logger(cfg: DictConfig, group: str, varied: Sequence[str]) -> None:
    """Let a logger that groups runs show a grid as one comparison, in which an arm is a job type.

    Args:
        cfg: one run's configuration; names that it gives itself are kept.
        group: what the grid is called.
        varied: the words that the grid varies, as this run has them; an arm is all but the seed.
    """
    names = {"group": group, "job_type": " ".join(_arm(varied)) or None}
    logger = cfg.get("logger")
    for option in names.keys() & (logger or {}).keys():
        if logger[option] is None:
            logger[option] = names[option]


def grid_table(jobs: Sequence[tuple[Sequence[str], Path]], width: int | None = None) -> str:
    """Return a Markdown table of the jobs that trained, the best first; "" where fewer than two did.

    Args:
        jobs: what was typed for each, and its folder.
        width: characters in a line; None is as many as the terminal has, and 80 elsewhere.
    """
    width = width or shutil.get_terminal_size((80, 24)).columns
    trained = [(words, summary) for words, folder in jobs if (summary := _read(folder))]
    if len(trained) < 2:
        return ""
    arms: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for words, summary in trained:
        arms.setdefault(_arm(words), []).append(summary)
    shared = set.intersection(*(set(words) for words in arms))
    # what is impossibly good is no result, and stands last
    ranked = sorted(arms.items(), key=lambda arm: (_error(arm[1]) is not None, _mean(arm[1], "val_bpb")))
    names = [" ".join(word for word in words if word not in shared) for words, _ in ranked]
    floors = {_floor(summary) for _, summary in trained}
    head, rows = list(HEAD), [_row(summaries) for _, summaries in ranked]
    if len(floors) > 1:  # else one line says it
        head.insert(3, ABOVE_FLOOR)
        for row, (_, summaries) in zip(rows, ranked):
            row.insert(2, _above_floor(summaries))
    left_out = []
    while (room := _room(head, rows, width)) < SHORTEST and len(head) > 3:
        left_out.append(head.pop())
        rows = [row[:-1] for row in rows]
    short = [_shortened(name, max(room, SHORTEST)) for name in names]
    cells = [[code(name) if name else "as it is", *row] for name, row in zip(short, rows)]
    below = [_under_it([summary for _, summary in trained], floors)]
    for words, summaries in ranked:
        if error := _error(summaries):
            below.append(f"{' '.join(words) or 'All runs'}: {error}")
    if left_out:
        below.append(f"For lack of room, the table has no {' and no '.join(reversed(left_out))}.")
    if short != names:
        below += ["The names in full, in the same order:", *(f"  {name or 'as it is'}" for name in names)]
    if len(arms) > 1:
        below += ["How sure this is:", f"  {_command_to_compare(jobs)}"]
    told = [line if line.startswith(" ") else textwrap.fill(line, max(width, 40)) for line in below]
    return "\n".join([_table(head, cells), "", *told])


def _command_to_compare(jobs: Sequence[tuple[Sequence[str], Path]]) -> str:
    """Return what to type so that the grid's runs are compared, wherever its folder is and whatever ran since."""
    grid = os.path.commonpath([folder.parent for _, folder in jobs])
    named = grid if PLAIN.fullmatch(grid) else in_quotes(grid)
    trusted = dict.fromkeys(word for words, _ in jobs for word in words if key_of(word) == "extensions")
    return shlex.join(["python", "run.py", *trusted, "task=compare", f"runs=[{named}]"])


def _room(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> int:
    """Return how many characters of an arm's words fit beside the other columns."""
    least = len(code("x" * SHORTEST))
    line = _table(head, [["x" * least, *row] for row in rows]).partition("\n")[0]
    return SHORTEST + width - len(line)


def _table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return table(head, cells, "l" + "r" * (len(head) - 1))


def _arm(words: Sequence[str]) -> tuple[str, ...]:
    """Return what runs have in common that differ in their seed alone."""
    return tuple(word for word in words if not is_seed(word))


def _read(folder: Path) -> dict[str, Any] | None:
    """Return what a run that trained has found; None for what failed, was another task, or is damaged."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        machine = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        is_whole = all(isinstance(summary[name], (int, float)) for name in FIGURES)
        _machine(summary := {**summary, "machine": machine})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return summary if is_whole else None


def _shortened(name: str, room: int) -> str:
    return name if len(name) <= room else f"{name[: room - 1]}…"


def _row(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    first = summaries[0]
    return [
        f"{first['params']:,}",
        _spread([summary["val_bpb"] for summary in summaries]),
        f"{_mean(summaries, 'tokens_per_second'):,.0f}",
        "none" if first["state_bytes_per_sequence"] is None else f"{first['state_bytes_per_sequence']:,}",
    ]


def _error(summaries: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what is wrong if a run's metric is below the corpus's floor."""
    return next(filter(None, map(below_floor, summaries)), None)


def _above_floor(summaries: Sequence[Mapping[str, Any]]) -> str:
    known = [summary["bpb_above_floor"] for summary in summaries if "bpb_above_floor" in summary]
    return _spread(known) if len(known) == len(summaries) else ""


def _floor(summary: Mapping[str, Any]) -> float | None:
    """Return the entropy of a run's validation text, as it's shown; None where it isn't known."""
    return round(summary["val_bpb"] - summary["bpb_above_floor"], 4) if "bpb_above_floor" in summary else None


def _spread(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation where there are several seeds."""
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _mean(summaries: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(summary[key] for summary in summaries)


def _under_it(summaries: Sequence[Mapping[str, Any]], floors: Container[float | None]) -> str:
    """Return what the figures depend on: tokens, seeds, floor and machine."""
    tokens, seeds = ({summary[key] for summary in summaries} for key in ("tokens", "seed"))
    machines = {_machine(summary) for summary in summaries}
    floor = _floor(summaries[0])
    told = [
        f"{' or '.join(f'{n:,}' for n in sorted(tokens))} tokens each; {'seeds' if len(seeds) > 1 else 'seed'}"
        f" {', '.join(map(str, sorted(seeds)))}{' (± is the standard deviation over seeds)' * (len(seeds) > 1)}.",
        f"The floor, which no model can be below, is {floor:.4f}." if floor and {floor} == floors else "",
        f"{' and '.join(sorted(machines))}. The state is one sequence's, as long as those trained on, in fp32.",
    ]
    return " ".join(filter(None, told))


def _machine(summary: Mapping[str, Any]) -> str:
    here, on = summary["machine"], summary["device"]
    name = here["gpu"] if on.startswith("cuda") else f"{here['cpu']}, {here['threads']} threads"
    return f"{name}, torch {here['versions']['torch']}"
