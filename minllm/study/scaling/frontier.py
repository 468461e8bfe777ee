"""IsoFLOP: several sizes at each budget of FLOPs, and the loss of the best one, as a function of the budget.

The best size at a budget C is where the law of the family, L(N, D), is lowest with D = C / (FLOPs per token of N). The
law is fitted to all of its runs. A parabola through the losses at one budget is biased, because they aren't symmetric
about the best size (2603.22339).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minllm.estimates import Estimate
from minllm.page import units
from minllm.study.arms import Arm
from minllm.study.measures import METRIC
from minllm.study.scaling.law import Fit, Law
from minllm.study.scaling.series import flops_of, params_of, tokens_of

Floats = NDArray[np.float64]

SIZES, BEYOND = 800, 16
"""How many sizes are tried for the best one, and how far beyond those that were trained: far enough to see it there."""


@dataclass(frozen=True)
class Best:
    """The best size of a family at a budget, by its law.

    params: with the bootstrap interval
    tokens: that the budget buys at this size
    loss: there, with the bootstrap interval
    is_inside: whether it is between the smallest and the largest size that were trained
    """

    flops: float
    params: Estimate
    tokens: float
    loss: Estimate
    is_inside: bool

    @property
    def sentence(self) -> str:
        return f"at {units.count(self.flops)} FLOPs about {units.count(self.params.value)} parameters"


def bests_of(budgets: Sequence[Sequence[Arm]], fit: Fit) -> list[Best]:
    """Return the best size of a family at each budget.

    Args:
        budgets: the arms of the family at each, of several sizes.
        fit: its law, of parameters and tokens.
    """
    per_token = flops_per_token([arm for arms in budgets for arm in arms])
    return [best_of(arms, fit, per_token) for arms in budgets]


def best_of(arms: Sequence[Arm], fit: Fit, per_token: Callable[[Floats], Floats]) -> Best:
    trained = [params_of(arm) for arm in arms]
    low, high = min(trained), max(trained)
    flops = float(np.mean([flops_of(arm) for arm in arms]))
    sizes = np.geomspace(low / BEYOND, high * BEYOND, SIZES)
    tokens = flops / per_token(sizes)

    def lowest(law: Law) -> tuple[float, float, float]:
        losses = law.at(sizes, tokens)
        at = int(np.argmin(losses))
        return float(sizes[at]), float(tokens[at]), float(losses[at])

    params, bought, loss = lowest(fit.law)
    resampled = [lowest(law) for law in fit.resampled]
    return Best(
        flops=flops,
        params=Estimate(params, fit.interval([size for size, *_ in resampled])),
        tokens=bought,
        loss=Estimate(loss, fit.interval([value for *_, value in resampled])),
        is_inside=low < params < high,
    )


def flops_per_token(arms: Sequence[Arm]) -> Callable[[Floats], Floats]:
    """Return the FLOPs per token as a function of the parameters: a curve in logarithms through those of the arms."""
    sizes, costs = np.log([(params_of(arm), flops_of(arm) / tokens_of(arm)) for arm in arms]).T
    degree = 2 if len(set(sizes.tolist())) > 3 else 1
    curve = np.polynomial.Polynomial.fit(sizes, costs, degree)
    ends = curve(sizes.min()), curve(sizes.max())

    def at(params: Floats) -> Floats:
        logs = np.log(params)
        # beyond the sizes that were trained, in proportion to the parameters
        below, above = np.minimum(0, logs - sizes.min()), np.maximum(0, logs - sizes.max())
        inside = curve(np.clip(logs, sizes.min(), sizes.max()))
        return np.exp(np.where(below < 0, ends[0] + below, np.where(above > 0, ends[1] + above, inside)))

    return at


def losses_at_best(arms: Sequence[Arm], best: Best, law: Law, seeds: Sequence[int]) -> list[float]:
    """Return the loss at the best size of a budget for each seed.

    It is the law's, plus the mean of how far the seed's runs at this budget are from the law, so that what the law gets
    wrong at a budget is corrected.
    """
    expected = [float(law.at(params_of(arm), tokens_of(arm))) for arm in arms]
    return [
        best.loss.value
        + float(np.mean([arm.runs[seed].summary[METRIC] - own for arm, own in zip(arms, expected)]))
        for seed in seeds
    ]


def common_seeds(arms: Sequence[Arm]) -> list[int]:
    """Return the seeds with which all of the arms were trained."""
    return sorted(set.intersection(*(set(arm.runs) for arm in arms)))


def edge_problem(names: Sequence[str], bests: Sequence[Sequence[Best]]) -> str | None:
    """Return why nothing follows from best sizes at the edge of those that were trained; None if there are none."""
    outside = [
        f"{name}: {best.sentence}"
        for name, of_name in zip(names, bests)
        for best in of_name
        if not best.is_inside
    ]
    if not outside:
        return None
    return (
        f"The best size is at or beyond the edge of those that were trained ({'; '.join(outside)}), so that the loss"
        " there is extrapolated. Train more sizes on that side of ladder.sizes."
    )
