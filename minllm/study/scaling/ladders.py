"""Ladders: arms that were trained at several sizes, found among the arms of a comparison."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from minllm.study.arms import Arm, measured, names_of, normalized, training_settings
from minllm.study.measures import METRIC
from minllm.study.scaling.answer import Answer, Rung, answer
from minllm.study.scaling.law import Fit, fit

Axis = Literal["params", "flops"]

SIZE_KEYS = ("model.dim", "model.n_layers", "optim.lr")
"""What may differ between rungs, besides hidden widths and budgets: the size, and what is tuned for it."""
BUDGETS = ("train.steps", "train.tokens", "train.minutes", "train.flops", "train.batch_size")
APART = 0.05
"""Up to this relative distance, two sizes are the same rung."""
LEAST_RUNGS, LEAST_PAIRS = 3, 4
RESAMPLES = 200


@dataclass(frozen=True)
class Family:
    """One choice at several sizes.

    name: what distinguishes it from the other families
    arms: from the smallest to the largest, of which no two have the same size
    """

    name: str
    arms: Sequence[Arm]


@dataclass(frozen=True)
class Ladder:
    """Two families that were trained at the same sizes, and what becomes of their difference.

    axis: what a size is: parameters if all rungs saw the same number of tokens, otherwise FLOPs of training
    answer: None if it can't be given, in which case `problem` says why
    laws: the law of each family, baseline first; None where it can't be fitted
    """

    arm: str
    baseline: str
    axis: Axis
    floor: float | None
    rungs: Sequence[Rung]
    answer: Answer | None
    laws: Sequence[Fit | None]
    problem: str | None = None


def ladders(arms: Sequence[Arm], floor: float | None) -> list[Ladder]:
    """Return the ladders of a comparison: the first family against each other one; none if there are no families.

    Args:
        floor: the corpus entropy in bits per byte, if it is known.
    """
    found = families(arms)
    if len(found) < 2:
        return []
    axis: Axis = (
        "params" if len({tokens_of(arm) for family in found for arm in family.arms}) == 1 else "flops"
    )
    return [ladder for other in found[1:] if (ladder := between(found[0], other, axis, floor))]


def families(arms: Sequence[Arm]) -> list[Family]:
    """Group arms by everything but their size. Those with two arms of one size, or fewer than three sizes, are none."""
    grouped: dict[tuple[Any, ...], list[Arm]] = {}
    for arm in measured(arms):
        kept = {key: value for key, value in training_settings(arm.cfg).items() if not is_of_size(key)}
        grouped.setdefault(tuple(sorted((key, normalized(value)) for key, value in kept.items())), []).append(
            arm
        )
    ordered = [sorted(members, key=params_of) for members in grouped.values()]
    ladders_only = [
        members
        for members in ordered
        if len(members) >= LEAST_RUNGS
        and all(params_of(b) / params_of(a) > 1 + APART for a, b in itertools.pairwise(members))
    ]
    names = names_of([without_size(members[0].cfg) for members in ladders_only])
    return [Family(name, members) for name, members in zip(names, ladders_only)]


def at_equal_sizes(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Return the arms of each other family with those of the first of the same size; none if there are no ladders."""
    found = families(arms)
    pairs = [pair for other in found[1:] for pair in matched(found[0], other)]
    return [(arm, baseline) for baseline, arm in pairs]


def matched(baseline: Family, other: Family) -> list[tuple[Arm, Arm]]:
    """Return the arms of two families that have the same size, baseline first."""
    return [
        (a, b) for a in baseline.arms for b in other.arms if abs(params_of(b) / params_of(a) - 1) <= APART
    ]


def is_of_size(key: str) -> bool:
    return key in SIZE_KEYS or key in BUDGETS or key.endswith(".hidden")


def without_size(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration without the keys that make its size."""
    return {
        key: without_size(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in cfg.items()
        if not is_of_size(f"{prefix}{key}")
    }


def between(baseline: Family, other: Family, axis: Axis, floor: float | None) -> Ladder | None:
    """Return the ladder of two families; None if they have fewer than three sizes with pairs in common."""
    pairs = matched(baseline, other)
    rungs = [rung for a, b in pairs if (rung := rung_of(a, b, axis)).arm]
    if len(rungs) < LEAST_RUNGS:
        return None
    laws = [
        law_of([arm for arm, _ in pairs], axis, floor),
        law_of([arm for _, arm in pairs], axis, floor),
    ]
    found, problem = None, None
    if any("upper" in (a.bound, b.bound) for a, b in pairs):
        problem = "The bits per byte are upper bounds, of which nothing follows about other sizes."
    elif sum(len(rung.arm) for rung in rungs) < LEAST_PAIRS:
        problem = f"It needs {LEAST_PAIRS} pairs of seeds or more."
    elif floor is not None and min(min(*rung.arm, *rung.baseline) for rung in rungs) <= floor:
        problem = "A loss is at or below the corpus entropy."
    else:
        found = answer(rungs, floor=floor)
    return Ladder(other.name, baseline.name, axis, floor, rungs, found, laws, problem)


def rung_of(baseline: Arm, arm: Arm, axis: Axis) -> Rung:
    seeds = [seed for seed in baseline.runs if seed in arm.runs]
    size = float(np.mean([size_of(baseline, axis), size_of(arm, axis)]))
    of_baseline, of_arm = ([side.runs[seed].summary[METRIC] for seed in seeds] for side in (baseline, arm))
    return Rung(size, of_baseline, of_arm)


def law_of(arms: Sequence[Arm], axis: Axis, floor: float | None) -> Fit | None:
    """Return the law of a family over one scale; None if it has too few sizes or a loss at the floor."""
    runs = [(size_of(arm, axis), run.summary[METRIC]) for arm in arms for run in arm.runs.values()]
    sizes, losses = np.array(runs).T
    try:
        return fit(losses, [sizes], floor=floor, resamples=RESAMPLES)
    except ValueError:
        return None


def params_of(arm: Arm) -> float:
    return float(arm.first.summary["params"])


def tokens_of(arm: Arm) -> float:
    return float(arm.first.summary["tokens"])


def size_of(arm: Arm, axis: Axis) -> float:
    summary = arm.first.summary
    return float(summary["params"] if axis == "params" else summary["tokens"] * summary["flops_per_token"])
