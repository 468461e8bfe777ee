"""The names of a grid's runs in a logger, and the table printed at the end of a grid.

Runs that differ only in their seed share a row, with their mean and standard deviation.
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
from typing import Any, get_args

from omegaconf import DictConfig

from minllm.data.floor import below_floor
from minllm.page import units
from minllm.page.markdown import code, table
from minllm.schema.overrides import PLAIN, in_quotes, is_seed, key_of
from minllm.sweep.metric import Accuracy

HEAD = ["", "params", "val_bpb", "tokens/s", "state, bytes"]
ABOVE_FLOOR = "above the floor"
METRICS = ("val_bpb", "params", "tokens", "tokens_per_second", "seed")
SHORTEST = 12  # characters of an arm's name that are always shown


def name_for_logger(cfg: DictConfig, group: str, varied: Sequence[str]) -> None:
    """Set the group and job type for a logger that groups runs: a grid is a group, an arm a job type.

    Args:
        cfg: one run's configuration; names that are set already are kept.
        group: the name of the grid.
        varied: this run's values of the overrides that the grid varies; the arm is all of them but the seed.
    """
    names = {"group": group, "job_type": " ".join(_arm(varied)) or None}
    logger = cfg.get("logger")
    for option in names.keys() & (logger or {}).keys():
        if logger[option] is None:
            logger[option] = names[option]


def grid_table(jobs: Sequence[tuple[Sequence[str], Path]], width: int | None = None) -> str:
    """Return a Markdown table of the completed runs, the best first, or "" if there are fewer than two.

    Args:
        jobs: the overrides and the folder of each run.
        width: characters per line; None is the width of the terminal, or 80 if there is none.
    """
    width = width or shutil.get_terminal_size((80, 24)).columns
    trained = [(overrides, summary) for overrides, folder in jobs if (summary := _read(folder))]
    if len(trained) < 2:
        return ""
    arms: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for overrides, summary in trained:
        arms.setdefault(_arm(overrides), []).append(summary)
    shared = set.intersection(*(set(overrides) for overrides in arms))
    # runs below the entropy floor are invalid and come last
    ranked = sorted(arms.items(), key=lambda arm: (_error(arm[1]) is not None, _mean(arm[1], "val_bpb")))
    names = [
        " ".join(override for override in overrides if override not in shared) for overrides, _ in ranked
    ]
    floors = {_floor(summary) for _, summary in trained}
    head, rows = list(HEAD), [_row(summaries) for _, summaries in ranked]
    if len(floors) > 1:  # otherwise the floor is in the footnote
        head.insert(3, ABOVE_FLOOR)
        for row, (_, summaries) in zip(rows, ranked):
            row.insert(2, _above_floor(summaries))
    for name in get_args(Accuracy):
        if any(name in summary for _, summary in trained):
            head.insert(head.index("tokens/s"), name)
            for row, (_, summaries) in zip(rows, ranked):
                row.insert(-2, _accuracy(summaries, name))
    left_out = []
    while (room := _room(head, rows, width)) < SHORTEST and len(head) > 3:
        left_out.append(head.pop())
        rows = [row[:-1] for row in rows]
    short = [_shortened(name, max(room, SHORTEST)) for name in names]
    cells = [[code(name) if name else "as it is", *row] for name, row in zip(short, rows)]
    below = [_footnote([summary for _, summary in trained], floors)]
    for overrides, summaries in ranked:
        if error := _error(summaries):
            below.append(f"{' '.join(overrides) or 'All runs'}: {error}")
    if any(_bound(summaries) == "upper" for summaries in arms.values()):
        below.append(units.ABOUT_BOUNDS)
    if left_out:
        below.append(f"Columns left out because of the width: {'; '.join(reversed(left_out))}.")
    if short != names:
        below += ["The full names, in the same order:", *(f"  {name or 'as it is'}" for name in names)]
    if len(arms) > 1:
        below += ["To see how certain this is:", f"  {_command_to_compare(jobs)}"]
    wrapped = [line if line.startswith(" ") else textwrap.fill(line, max(width, 40)) for line in below]
    return "\n".join([_table(head, cells), "", *wrapped])


def _command_to_compare(jobs: Sequence[tuple[Sequence[str], Path]]) -> str:
    """Return the command that compares the grid's runs."""
    grid = os.path.commonpath([folder.parent for _, folder in jobs])
    named = grid if PLAIN.fullmatch(grid) else in_quotes(grid)
    trusted = dict.fromkeys(
        override for overrides, _ in jobs for override in overrides if key_of(override) == "extensions"
    )
    return shlex.join(["python", "run.py", *trusted, "task=compare", f"runs=[{named}]"])


def _room(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> int:
    """Return how many characters of an arm's name fit beside the other columns."""
    least = len(code("x" * SHORTEST))
    line = _table(head, [["x" * least, *row] for row in rows]).partition("\n")[0]
    return SHORTEST + width - len(line)


def _table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return table(head, cells, "l" + "r" * (len(head) - 1))


def _arm(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return a run's overrides without the seed."""
    return tuple(override for override in overrides if not is_seed(override))


def _read(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a completed run; None if it failed, was another task, or is damaged."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        machine = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        is_readable = all(isinstance(summary[name], (int, float)) for name in METRICS)
        _machine(summary := {**summary, "machine": machine})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return summary if is_readable else None


def _shortened(name: str, room: int) -> str:
    return name if len(name) <= room else f"{name[: room - 1]}…"


def _row(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    first = summaries[0]
    return [
        f"{first['params']:,}",
        units.marked(_spread([summary["val_bpb"] for summary in summaries]), _bound(summaries)),
        f"{_mean(summaries, 'tokens_per_second'):,.0f}",
        "none" if first["state_bytes_per_sequence"] is None else f"{first['state_bytes_per_sequence']:,}",
    ]


def _accuracy(summaries: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the mean accuracy of an arm's runs; "" if not all of them have one."""
    known = [summary[name] for summary in summaries if isinstance(summary.get(name), (int, float))]
    return _spread(known) if len(known) == len(summaries) else ""


def _error(summaries: Sequence[Mapping[str, Any]]) -> str | None:
    """Return an error message if a run's metric is below the entropy floor of the corpus."""
    return next(filter(None, map(below_floor, summaries)), None)


def _above_floor(summaries: Sequence[Mapping[str, Any]]) -> str:
    known = [summary["bpb_above_floor"] for summary in summaries if "bpb_above_floor" in summary]
    return units.marked(_spread(known), _bound(summaries)) if len(known) == len(summaries) else ""


def _bound(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return whether the losses of an arm's runs are exact or an upper bound; those of older runs are exact."""
    return "upper" if any(summary.get("val_bound") == "upper" for summary in summaries) else "exact"


def _floor(summary: Mapping[str, Any]) -> float | None:
    """Return the entropy of a run's validation text in bits per byte, rounded; None if it is unknown."""
    return round(summary["val_bpb"] - summary["bpb_above_floor"], 4) if "bpb_above_floor" in summary else None


def _spread(values: Sequence[float]) -> str:
    """Return the mean and, with several seeds, the standard deviation."""
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _mean(summaries: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(summary[key] for summary in summaries)


def _footnote(summaries: Sequence[Mapping[str, Any]], floors: Container[float | None]) -> str:
    """Return what the metrics depend on: tokens, seeds, floor and machine."""
    tokens, seeds = ({summary[key] for summary in summaries} for key in ("tokens", "seed"))
    machines = {_machine(summary) for summary in summaries}
    floor = _floor(summaries[0])
    sentences = [
        f"{' or '.join(f'{n:,}' for n in sorted(tokens))} tokens each; {'seeds' if len(seeds) > 1 else 'seed'}"
        f" {', '.join(map(str, sorted(seeds)))}{' (± is the standard deviation over seeds)' * (len(seeds) > 1)}.",
        f"The floor, which no model can go below, is {floor:.4f}." if floor and {floor} == floors else "",
        f"{' and '.join(sorted(machines))}. The state is that of one sequence of the training length, in fp32.",
    ]
    return " ".join(filter(None, sentences))


def _machine(summary: Mapping[str, Any]) -> str:
    here, on = summary["machine"], summary["device"]
    name = here["gpu"] if on.startswith("cuda") else f"{here['cpu']}, {here['threads']} threads"
    return f"{name}, torch {here['versions']['torch']}"
