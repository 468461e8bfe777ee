"""What a grid found, at a glance: the table that `python run.py -m …` ends with.

It is a first look. Runs that differ in their seed alone are one row, with the mean and how far they lie from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Job = tuple[Sequence[str], Path]
"""What was typed for one job of a grid, and its folder."""

HEAD = ["", "params", "val_bpb", "above the floor", "tokens/s", "state, bytes"]


def grid_table(jobs: Sequence[Job]) -> str:
    """Return a Markdown table of the jobs that trained, the best first; "" where fewer than two did."""
    trained = [(words, read(folder)) for words, folder in jobs if (folder / "summary.json").is_file()]
    arms: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for words, summary in trained:
        arms.setdefault(tuple(word for word in words if not word.startswith("seed=")), []).append(summary)
    if len(trained) < 2:
        return ""
    shared = set.intersection(*(set(words) for words in arms))
    rows = sorted(arms.items(), key=lambda arm: mean(arm[1], "val_bpb"))
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)]]
    lines += [row([word for word in words if word not in shared], summaries) for words, summaries in rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{table}\n\n{under_it(trained)}"


def read(folder: Path) -> dict[str, Any]:
    machine = json.loads((folder / "environment.json").read_text())
    return {**json.loads((folder / "summary.json").read_text()), "machine": machine}


def row(words: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    first = summaries[0]
    return [
        " ".join(f"`{word}`" for word in words) or "as it is",
        f"{first['params']:,}",
        spread(summaries, "val_bpb"),
        spread(summaries, "bpb_above_floor") if "bpb_above_floor" in first else "",
        f"{mean(summaries, 'tokens_per_second'):,.0f}",
        "none" if first["state_bytes_per_sequence"] is None else f"{first['state_bytes_per_sequence']:,}",
    ]


def spread(summaries: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return the mean, and the largest distance from it where there are several seeds."""
    middle = mean(summaries, key)
    away = max(abs(summary[key] - middle) for summary in summaries)
    return f"{middle:.4f} ± {away:.4f}" if len(summaries) > 1 else f"{middle:.4f}"


def mean(summaries: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(summary[key] for summary in summaries) / len(summaries)


def under_it(trained: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> str:
    """Return what the figures depend on: tokens, seeds and machine."""
    summaries = [summary for _, summary in trained]
    tokens, seeds = ({summary[key] for summary in summaries} for key in ("tokens", "seed"))
    here = summaries[-1]["machine"]
    return (
        f"{' or '.join(f'{n:,}' for n in sorted(tokens))} tokens each; seeds {', '.join(map(str, sorted(seeds)))}"
        f" (± is the largest distance from the mean); {here['gpu'] or here['cpu']}, {here['threads']} threads,"
        f" torch {here['versions']['torch']}. The state is one sequence's, as long as those trained on, in fp32."
    )
