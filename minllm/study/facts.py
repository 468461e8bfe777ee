"""What was equal between arms and what wasn't, as their runs recorded it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minllm.page import units
from minllm.page.markdown import one_line
from minllm.study.arms import Arm, measured, training_settings
from minllm.study.selection import TrainedRun

NEAR = 0.01
"""Amounts that differ by at most this fraction are considered equal."""


@dataclass(frozen=True)
class Fact:
    """A property that may be equal in all arms.

    what: such as "parameters"
    equal: whether it is the same in all arms, or nearly the same for an amount
    said: the amount, or what each arm has
    """

    what: str
    equal: bool
    said: str


def facts(arms: Sequence[Arm]) -> list[Fact]:
    """Return what was equal between arms and what wasn't, most important first."""
    return [
        Fact("validation text", True, "identical"),
        seeds_fact(arms),
        config_fact(arms, "tokenizer", "the same", "different; bits per byte remain comparable"),
        config_fact(arms, "data", "the same settings", "different"),
        config_fact(arms, "train.batch_size", "the same", "different"),
        config_fact(arms, "objective", "the same", "different"),
        amount_fact(arms, "parameters", lambda run: run.summary["params"]),
        amount_fact(arms, "FLOPs per token", lambda run: run.summary["flops_per_token"]),
        amount_fact(arms, "tokens trained on", lambda run: run.summary["tokens"]),
        amount_fact(
            arms, "FLOPs of training", lambda run: run.summary["tokens"] * run.summary["flops_per_token"]
        ),
        amount_fact(arms, "time of training", lambda run: run.summary["wall_seconds"], units.duration),
        label_fact(arms, "precision", lambda run: run.summary["decisions"].get("precision")),
        label_fact(arms, "compiled", compiled),
        label_fact(arms, "processor", processor),
        label_fact(arms, "threads", lambda run: run.environment["threads"]),
        label_fact(arms, "torch", lambda run: run.environment["versions"]["torch"]),
        version_fact(arms),
    ]


def config_fact(arms: Sequence[Arm], key: str, same: str, different: str) -> Fact:
    """Compare a section, or a single key, of the arms' configurations."""
    values = [
        {
            name: value
            for name, value in training_settings(arm.cfg).items()
            if f"{name}.".startswith(f"{key}.")
        }
        for arm in arms
    ]
    equal = all(section == values[0] for section in values)
    chosen = dict.fromkeys(
        one_line(str(arm.cfg["choices"].get(key) or section.get(key))) for arm, section in zip(arms, values)
    )
    return Fact(
        key.rpartition(".")[2].replace("_", " "),
        equal,
        f"{same if equal else different} ({', '.join(chosen)})",
    )


def amount_fact(
    arms: Sequence[Arm],
    what: str,
    of: Callable[[TrainedRun], float],
    unit: Callable[[float], str] = units.count,
) -> Fact:
    """Compare the arms' mean amounts, which are equal if they are within NEAR of each other."""
    means = [sum(map(of, arm.runs.values())) / len(arm.runs) for arm in measured(arms)]
    low, high = min(means), max(means)
    equal = high <= low * (1 + NEAR)
    amounts = list(dict.fromkeys(map(unit, (low, high))))
    about = "about " * (not equal and len(amounts) == 1)  # the difference is lost in rounding
    return Fact(what, equal, about + " to ".join(amounts))


def label_fact(arms: Sequence[Arm], what: str, of: Callable[[TrainedRun], Any]) -> Fact:
    """Compare a short label of each run."""
    return agreed(what, [one_line(str(of(run))) for arm in arms for run in arm.runs.values()])


def seeds_fact(arms: Sequence[Arm]) -> Fact:
    return agreed("seeds", [", ".join(map(str, arm.seeds)) for arm in arms])


def agreed(what: str, labels: Sequence[str]) -> Fact:
    different = dict.fromkeys(labels)
    return Fact(what, len(different) == 1, " and ".join(different))


def compiled(run: TrainedRun) -> str:
    asked = (run.cfg.get("train") or {}).get("compile")
    return "yes" if (run.summary["decisions"].get("compile") if asked == "auto" else asked) else "no"


def processor(run: TrainedRun) -> str:
    """Return the name of the GPU or CPU that trained a run; older runs don't record which of the two it was."""
    gpu = run.environment["gpu"]
    return (
        gpu
        if gpu and str(run.summary.get("device", gpu)).startswith(("cuda", gpu))
        else run.environment["cpu"]
    )


def version_fact(arms: Sequence[Arm]) -> Fact:
    """Compare the versions. Versions with uncommitted changes are never considered equal."""
    fact = label_fact(arms, "version of minllm", version)
    changed = any(run.environment["git"]["dirty"] for arm in arms for run in arm.runs.values())
    return (
        replace(fact, equal=False, said=f"{fact.said}, which may differ") if changed and fact.equal else fact
    )


def version(run: TrainedRun) -> str:
    git = run.environment["git"]
    number = run.environment["versions"]["minllm"]
    return (
        f"{number}, {(git['commit'] or 'no commit')[:9]}{' with uncommitted changes' if git['dirty'] else ''}"
    )
