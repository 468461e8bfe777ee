"""Ladders: arms that were trained at several sizes, found among the arms of a comparison."""

from __future__ import annotations

import functools
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
from minllm.study.scaling.frontier import Best, bests_of, common_seeds, edge_problem, losses_at_best
from minllm.study.scaling.law import Fit, fit
from minllm.study.scaling.rates import RateLine
from minllm.study.scaling.series import (
    LEAST_RUNGS,
    Pair,
    Series,
    are_close,
    flops_of,
    params_of,
    series_of,
    tokens_of,
)
from minllm.study.selection import LeftOut

Axis = Literal["params", "flops"]

AXES: Mapping[Axis, str] = {"params": "parameters", "flops": "FLOPs of training"}

SIZE_KEYS = ("model.dim", "model.n_layers", "optim.lr", "schedule.lr_max")
"""What may differ between rungs, besides hidden widths and budgets: the size, and what is tuned for it."""
BUDGETS = ("train.steps", "train.tokens", "train.minutes", "train.flops", "train.batch_size")
LEAST_PAIRS = 4
RESAMPLES = 200


@dataclass(frozen=True)
class Family:
    """One choice at several sizes.

    name: what distinguishes it from the other families
    arms: from the smallest to the largest; of one size, from the fewest tokens to the most
    rates: the learning rate at each size, if it was tuned at some of them
    """

    name: str
    arms: Sequence[Arm]
    rates: RateLine | None = None


@dataclass(frozen=True)
class Point:
    """A run of a family.

    seconds: of training, evaluations included
    residual: log L minus that of the family's law; None without a law
    """

    params: float
    tokens: float
    flops: float
    seconds: float
    seed: int
    loss: float
    residual: float | None


@dataclass(frozen=True)
class Ladder:
    """Two families that were trained at the same sizes, and what becomes of their difference.

    axis: what a size is: parameters if all rungs saw the same number of tokens, otherwise FLOPs of training
    answer: None if it can't be given, in which case `problem` says why
    laws: the law of each family, baseline first; None where it can't be fitted. It is one of parameters and tokens if
        the families were trained with several numbers of tokens at each size, otherwise of the size
    points: the runs of each family, baseline first
    series: its pairs, and what distinguishes them from those of other ladders of the same families
    bests: of IsoFLOP, the best size of each family at each budget, baseline first; the rungs are then the budgets, and
        their losses those at the best sizes
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
    points: Sequence[Sequence[Point]] = ((), ())
    series: Series = Series(())
    bests: Sequence[Sequence[Best]] = ((), ())

    @property
    def at(self) -> str:
        """What distinguishes it from other ladders of the same families, as the end of a phrase; mostly ""."""
        return f" at {self.series.label}" if self.series.label else ""

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
    found = []
    for other in others:
        own = between(baseline, other, floor, left_out)
        # a check is of the most tokens
        found += [*own[:-1], *(replace(ladder, check=checks.get(other.name)) for ladder in own[-1:])]
    return found


def axis_of(series: Series) -> Axis:
    """Return parameters if every run saw the same number of tokens, else FLOPs."""
    return "params" if len({tokens_of(arm) for pair in series.pairs for arm in pair}) == 1 else "flops"


def families_among(arms: Sequence[Arm]) -> list[Family]:
    """Group arms by everything but their size and tokens.

    Those with two arms of one size and number of tokens, or fewer than three sizes, are no families.
    """
    grouped: dict[tuple[Any, ...], list[Arm]] = {}
    for arm in measured(arms):
        kept = {key: value for key, value in training_settings(arm.cfg).items() if not is_of_size(key)}
        grouped.setdefault(tuple(sorted((key, normalized(value)) for key, value in kept.items())), []).append(
            arm
        )
    ordered = [
        sorted(members, key=lambda arm: (params_of(arm), tokens_of(arm))) for members in grouped.values()
    ]
    ladders_only = [
        members
        for members in ordered
        if len({params_of(arm) for arm in members}) >= LEAST_RUNGS
        and not any(are_at_one_place(*two) for two in itertools.combinations(members, 2))
    ]
    names = names_of([without_size(members[0].cfg) for members in ladders_only])
    return [Family(name, members) for name, members in zip(names, ladders_only)]


def at_equal_sizes(families: Sequence[Family]) -> list[tuple[Arm, Arm]]:
    """Return the arms of each other family with those of the first of the same size; none if there are no ladders."""
    pairs = [pair for other in families[1:] for pair in matched(families[0], other)]
    return [(arm, baseline) for baseline, arm in pairs]


def matched(baseline: Family, other: Family) -> list[Pair]:
    """Return the arms of two families that have the same size, and of several with this size the same tokens."""
    of_size = [(a, b) for a in baseline.arms for b in other.arms if are_close(params_of(a), params_of(b))]

    def is_only(pair: Pair) -> bool:
        return sum(pair[0] is a or pair[1] is b for a, b in of_size) == 1

    return [pair for pair in of_size if is_only(pair) or are_at_one_place(*pair)]


def are_at_one_place(one: Arm, other: Arm) -> bool:
    return all(are_close(value_of(one), value_of(other)) for value_of in (params_of, tokens_of))


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
    baseline: Family, other: Family, floor: float | None, left_out: Sequence[LeftOut] = ()
) -> list[Ladder]:
    """Return the ladders of two families; none if they have fewer than three sizes with pairs in common."""
    pairs = [pair for pair in matched(baseline, other) if set(pair[0].runs) & set(pair[1].runs)]
    several = series_of(pairs)
    families = [Family(side.name, [pair[at] for pair in pairs]) for at, side in enumerate((baseline, other))]
    if not several:
        return []
    of_tokens = len(several) > 1 or bool(several[0].budgets)
    laws = [law_of(family.arms, axis_of(several[0]), floor, of_tokens=of_tokens) for family in families]
    found = []
    for series in several:
        ladder = Ladder(
            arm=other.name,
            baseline=baseline.name,
            axis=axis_of(series),
            floor=floor,
            rungs=[rung_of(a, b, axis_of(series)) for a, b in series.pairs],
            answer=None,
            laws=laws,
            rates=(baseline.rates, other.rates),
            points=[points_of(family.arms, law) for family, law in zip(families, laws)],
            series=series,
        )
        ladder = with_frontier(ladder) if series.budgets else ladder
        problem = ladder.problem or why_unanswered(series, ladder.rungs, floor, left_out)
        found.append(
            replace(ladder, problem=problem, answer=None if problem else answer(ladder.rungs, floor=floor))
        )
    return found


def with_frontier(ladder: Ladder) -> Ladder:
    """Return a ladder of IsoFLOP, whose rungs are budgets, with the losses at the best size of each family."""
    budgets = ladder.series.budgets
    sides = [[[pair[at] for pair in budget] for budget in budgets] for at in (0, 1)]
    if any(law is None or law.problem for law in ladder.laws):
        why = next((law.problem for law in ladder.laws if law and law.problem), "they have too few points")
        problem = f"The laws of parameters and tokens don't determine the best sizes: {why}."
        return replace(ladder, rungs=[], problem=problem)
    bests = [bests_of(side, law) for side, law in zip(sides, ladder.laws)]
    rungs = []
    for at, budget in enumerate(budgets):
        seeds = common_seeds([arm for pair in budget for arm in pair])
        size = float(np.mean([flops_of(arm) for pair in budget for arm in pair]))
        losses = (
            losses_at_best(side[at], of_side[at], law.law, seeds)
            for side, of_side, law in zip(sides, bests, ladder.laws)
        )
        rungs.append(Rung(size, *losses))
    rungs = [rung for rung in rungs if rung.arm]
    problem = edge_problem((ladder.baseline, ladder.arm), bests)
    if len(rungs) < LEAST_RUNGS:
        problem = f"It needs {LEAST_RUNGS} budgets at which all sizes have a seed in common."
    return replace(ladder, rungs=rungs, bests=bests, problem=problem)


def why_unanswered(
    series: Series, rungs: Sequence[Rung], floor: float | None, left_out: Sequence[LeftOut]
) -> str | None:
    """Return why nothing can be said of other sizes, as a sentence; None if something can."""
    if unstable := [arm.name for pair in series.pairs for arm in pair if diverged_seeds(arm, left_out)]:
        return f"Training diverged with some seeds ({', '.join(unstable)}), so the others may be lucky ones."
    if any(arm.bound == "upper" for pair in series.pairs for arm in pair):
        return "The bits per byte are upper bounds, of which nothing follows about other sizes."
    if sum(len(rung.arm) for rung in rungs) < LEAST_PAIRS:
        return f"It needs {LEAST_PAIRS} pairs of seeds or more."
    if floor is not None and min(min(*rung.arm, *rung.baseline) for rung in rungs) <= floor:
        return "A loss is at or below the corpus entropy."
    return None


def rung_of(baseline: Arm, arm: Arm, axis: Axis) -> Rung:
    seeds = [seed for seed in baseline.runs if seed in arm.runs]
    size = float(np.mean([size_of(baseline, axis), size_of(arm, axis)]))
    of_baseline, of_arm = ([side.runs[seed].summary[METRIC] for seed in seeds] for side in (baseline, arm))
    return Rung(size, of_baseline, of_arm)


def law_of(arms: Sequence[Arm], axis: Axis, floor: float | None, *, of_tokens: bool) -> Fit | None:
    """Return the law of a family; None if it has too few sizes or a loss at the floor.

    Args:
        of_tokens: whether it is a law of parameters and tokens, instead of the size.
    """
    runs = [(arm, seed, run.summary[METRIC]) for arm in arms for seed, run in arm.runs.items()]
    scales = (params_of, tokens_of) if of_tokens else (functools.partial(size_of, axis=axis),)
    try:
        return fit(
            np.array([loss for *_, loss in runs]),
            [np.array([scale(arm) for arm, *_ in runs]) for scale in scales],
            floor=floor,
            resamples=RESAMPLES,
            # runs that branch off one another share most of their training
            groups=[(params_of(arm), seed) for arm, seed, _ in runs] if of_tokens else None,
        )
    except ValueError:
        return None


def points_of(arms: Sequence[Arm], law: Fit | None) -> list[Point]:
    """Return the runs of a family, in the order of its arms and their seeds."""
    runs = [(arm, seed, run.summary) for arm in arms for seed, run in arm.runs.items()]
    residuals = [None] * len(runs) if law is None else law.residuals.tolist()
    return [
        Point(
            params=params_of(arm),
            tokens=tokens_of(arm),
            flops=flops_of(arm),
            seconds=float(summary["wall_seconds"]),
            seed=seed,
            loss=summary[METRIC],
            residual=residual,
        )
        for (arm, seed, summary), residual in zip(runs, residuals)
    ]


def size_of(arm: Arm, axis: Axis) -> float:
    return params_of(arm) if axis == "params" else flops_of(arm)
