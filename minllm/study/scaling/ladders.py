"""Ladders: arms that were trained at several sizes, found among the arms of a comparison."""

from __future__ import annotations

import itertools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from minllm.study.arms import Arm, measured, names_of, normalized, training_settings
from minllm.study.divergence import diverged_seeds
from minllm.study.measures import METRIC
from minllm.study.scaling.answer import Answer, Rung, answer
from minllm.study.scaling.check import Check
from minllm.study.scaling.law import Fit, fit
from minllm.study.scaling.rates import RateLine
from minllm.study.selection import LeftOut

Axis = Literal["params", "flops"]

AXES: Mapping[Axis, str] = {"params": "parameters", "flops": "FLOPs of training"}

SIZE_KEYS = ("model.dim", "model.n_layers", "optim.lr", "schedule.lr_max")
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
    rates: the learning rate at each size, if it was tuned at some of them
    """

    name: str
    arms: Sequence[Arm]
    rates: RateLine | None = None


@dataclass(frozen=True)
class Ladder:
    """Two families that were trained at the same sizes, and what becomes of their difference.

    axis: what a size is: parameters if all rungs saw the same number of tokens, otherwise FLOPs of training
    answer: None if it can't be given, in which case `problem` says why
    laws: the law of each family, baseline first; None where it can't be fitted
    rates: the learning rates of each family, baseline first; None where they weren't tuned for this ladder
    check: how the prediction for a rung above the largest one turned out, if one was trained
    """

    arm: str
    baseline: str
    axis: Axis
    floor: float | None
    rungs: Sequence[Rung]
    answer: Answer | None
    laws: Sequence[Fit | None]
    problem: str | None = None
    rates: Sequence[RateLine | None] = (None, None)
    check: Check | None = None

    @property
    def is_answered(self) -> bool:
        return self.answer is not None and self.answer.word != "unknown"


def ladders(
    families: Sequence[Family],
    floor: float | None,
    left_out: Sequence[LeftOut] = (),
    checks: Mapping[str, Check] = types.MappingProxyType({}),
) -> list[Ladder]:
    """Return the ladders of a comparison: the first family against each other one; none if there are no two.

    Args:
        floor: the corpus entropy in bits per byte, if it is known.
        left_out: the runs that aren't compared, of which some may have diverged.
        checks: by the name of the other family.
    """
    if len(families) < 2:
        return []
    baseline, *others = families
    axis = axis_of(families)
    found = [(other.name, between(baseline, other, axis, floor, left_out)) for other in others]
    return [replace(ladder, check=checks.get(name)) for name, ladder in found if ladder]


def axis_of(families: Sequence[Family]) -> Axis:
    """Return parameters if every run saw the same number of tokens, else FLOPs."""
    return "params" if len({tokens_of(arm) for family in families for arm in family.arms}) == 1 else "flops"


def families_among(arms: Sequence[Arm]) -> list[Family]:
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


def at_equal_sizes(families: Sequence[Family]) -> list[tuple[Arm, Arm]]:
    """Return the arms of each other family with those of the first of the same size; none if there are no ladders."""
    pairs = [pair for other in families[1:] for pair in matched(families[0], other)]
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


def between(
    baseline: Family, other: Family, axis: Axis, floor: float | None, left_out: Sequence[LeftOut] = ()
) -> Ladder | None:
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
    unstable = [arm.name for pair in pairs for arm in pair if diverged_seeds(arm, left_out)]
    if unstable:
        problem = (
            f"Training diverged with some seeds ({', '.join(unstable)}), so the others may be lucky ones."
        )
    elif any("upper" in (a.bound, b.bound) for a, b in pairs):
        problem = "The bits per byte are upper bounds, of which nothing follows about other sizes."
    elif sum(len(rung.arm) for rung in rungs) < LEAST_PAIRS:
        problem = f"It needs {LEAST_PAIRS} pairs of seeds or more."
    elif floor is not None and min(min(*rung.arm, *rung.baseline) for rung in rungs) <= floor:
        problem = "A loss is at or below the corpus entropy."
    else:
        found = answer(rungs, floor=floor)
    rates = (baseline.rates, other.rates)
    return Ladder(other.name, baseline.name, axis, floor, rungs, found, laws, problem, rates)


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
