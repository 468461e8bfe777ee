"""The commands that repeat the runs of a comparison, and compare them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from minllm.schema.overrides import is_seed, key_of
from minllm.study.arms import Arm
from minllm.study.comparison import ALL, Comparison
from minllm.study.report.sentences import arm_name
from minllm.study.selection import runs_in


def commands(comparison: Comparison) -> list[str]:
    """Return the commands that made and compared the runs, if known, and a command for each arm."""
    arms = [line for arm in comparison.arms for line in lines_of(arm)]
    return [*comparison.commands, *arms] if comparison.commands else [*arms, compare_command(comparison)]


def lines_of(arm: Arm) -> list[str]:
    """Return the commands that train an arm's runs again: several if the runs had different overrides."""
    seeds: dict[tuple[str, ...], list[int]] = {}
    trained_runs = {seed: run.cfg for seed, run in arm.runs.items()}
    for seed, cfg in (trained_runs or {run.cfg["seed"]: run.cfg for run in arm.diverged if run.cfg}).items():
        overrides = cfg.get("typed")
        if overrides is None:
            return [
                f"# {' '.join(arm_name(arm).split())}: made by an older minllm, which didn't record the overrides"
            ]
        trusted = [
            override for override in overrides if not is_seed(override) and not is_unsafe(override, cfg)
        ]
        seeds.setdefault(tuple(trusted), []).append(seed)
    return [train_command(overrides, same_seeds) for overrides, same_seeds in seeds.items()]


def is_unsafe(override: str, cfg: Mapping[str, Any]) -> bool:
    """Whether a recorded override configures Hydra, or allows code that the comparison doesn't."""
    top = re.split("[./]", key_of(override))[0]
    return top == "hydra" or (top == "extensions" and not cfg.get("extensions"))


def train_command(overrides: Sequence[str], seeds: Sequence[int]) -> str:
    several = ["-m"] if len(seeds) > 1 else []
    return shlex.join(["python", "run.py", *several, *overrides, f"seed={','.join(map(str, seeds))}"])


def compare_command(comparison: Comparison) -> str:
    """Return the command that compares these runs again."""
    each = any(contest.baseline is not comparison.baseline for contest in comparison.contests)
    name = comparison.baseline.name
    baseline = ALL if each else name
    overrides = [f"runs=[{','.join(quoted(folder) for folder in folders(comparison))}]"]
    overrides += [f"baseline={quoted(baseline)}"] if baseline else []
    overrides += [f"margin={comparison.margin:g}"] + ["aa=true"] * bool(comparison.noise)
    overrides += comparison.options
    return shlex.join(["python", "run.py", "task=compare", *overrides])


def folders(comparison: Comparison) -> list[str]:
    """Return the folders of the runs and of those that failed, or of grids that contain only these runs."""
    runs = [run.folder for arm in comparison.arms for run in arm.runs.values()]
    runs += [left_out.folder for left_out in comparison.left_out if left_out.lost]
    known = {*runs, *(left_out.folder for left_out in comparison.left_out)}
    grids = {grid for grid in {run.parent for run in runs} if holds_only(grid, known)}
    named = dict.fromkeys(run.parent if run.parent in grids else run for run in runs)
    return [shortened(folder) for folder in named]


def holds_only(grid: Path, runs: set[Path]) -> bool:
    try:
        return set(runs_in(grid)) <= runs
    except OSError:
        return False


def shortened(folder: Path) -> str:
    """Return a folder relative to the working directory, if it is inside."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def quoted(word: str) -> str:
    """Return a value for Hydra, in quotes if it needs them."""
    return word if re.fullmatch(r"[\w./-]+", word) else QuotedString(word, Quote.double).with_quotes()
