"""A grid, `python run.py -m …`: what a logger calls its runs, and the table that it ends with.

The table is a first look. Runs that differ in their seed alone are one row, with the mean and how far they lie from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from minllm.floor import below_floor
from minllm.markdown import code, table
from minllm.words import is_seed

HEAD = ["", "params", "val_bpb", "above the floor", "tokens/s", "state, bytes"]


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


def grid_table(jobs: Sequence[tuple[Sequence[str], Path]]) -> str:
    """Return a Markdown table of the jobs that trained, the best first; "" where fewer than two did.

    Args:
        jobs: what was typed for each, and its folder.
    """
    trained = [(words, summary) for words, folder in jobs if (summary := _read(folder))]
    if len(trained) < 2:
        return ""
    arms: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for words, summary in trained:
        arms.setdefault(_arm(words), []).append(summary)
    shared = set.intersection(*(set(words) for words in arms))
    # what is impossibly good is no result, and stands last
    rows = sorted(arms.items(), key=lambda arm: (_error(arm[1]) is not None, _mean(arm[1], "val_bpb")))
    cells = [_row([word for word in words if word not in shared], summaries) for words, summaries in rows]
    below = [_under_it([summary for _, summary in trained])]
    for words, summaries in rows:
        if error := _error(summaries):
            below.append(f"{' '.join(words) or 'All runs'}: {error}")
    if len(arms) > 1:
        below.append("What is sure of this is said by: python run.py task=compare 'runs=[latest]'")
    return "\n\n".join([table(HEAD, cells, "l" + "r" * (len(HEAD) - 1)), *below])


def _arm(words: Sequence[str]) -> tuple[str, ...]:
    """Return what runs have in common that differ in their seed alone."""
    return tuple(word for word in words if not is_seed(word))


def _read(folder: Path) -> dict[str, Any] | None:
    """Return what a run that trained has found; None for what failed or was another task."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        machine = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {**summary, "machine": machine} if "val_bpb" in summary else None


def _row(words: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    first = summaries[0]
    return [
        " ".join(map(code, words)) or "as it is",
        f"{first['params']:,}",
        _spread(summaries, "val_bpb"),
        _spread(summaries, "bpb_above_floor")
        if all("bpb_above_floor" in summary for summary in summaries)
        else "",
        f"{_mean(summaries, 'tokens_per_second'):,.0f}",
        "none" if first["state_bytes_per_sequence"] is None else f"{first['state_bytes_per_sequence']:,}",
    ]


def _error(summaries: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what is wrong if a run's figure is below the corpus's floor."""
    return next(filter(None, map(below_floor, summaries)), None)


def _spread(summaries: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return the mean, and the largest distance from it where there are several seeds."""
    middle = _mean(summaries, key)
    away = max(abs(summary[key] - middle) for summary in summaries)
    return f"{middle:.4f} ± {away:.4f}" if len(summaries) > 1 else f"{middle:.4f}"


def _mean(summaries: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(summary[key] for summary in summaries) / len(summaries)


def _under_it(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return what the figures depend on: tokens, seeds and machine."""
    tokens, seeds = ({summary[key] for summary in summaries} for key in ("tokens", "seed"))
    machines = {_machine(summary) for summary in summaries}
    return (
        f"{' or '.join(f'{n:,}' for n in sorted(tokens))} tokens each; seeds {', '.join(map(str, sorted(seeds)))}"
        f" (± is the largest distance from the mean); {' and '.join(sorted(machines))}. The state is one sequence's, as"
        " long as those trained on, in fp32."
    )


def _machine(summary: Mapping[str, Any]) -> str:
    here, on = summary["machine"], summary["device"]
    name = here["gpu"] if on.startswith("cuda") else f"{here['cpu']}, {here['threads']} threads"
    return f"{name}, torch {here['versions']['torch']}"
