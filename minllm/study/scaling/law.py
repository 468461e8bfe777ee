"""Scaling laws: the loss of one arm as a function of its parameters, tokens or FLOPs.

    L(N, D) = E + A / N^α + B / D^β          L(N) = E + A / N^α          L(C) = E + A / C^α

as fitted to runs by Hoffmann et al. (2203.15556) and again by Besiroglu et al. (2404.10102): the Huber loss of log L,
summed over runs, minimised from a grid of starting points. E is the loss that no size can improve on; on a corpus whose
entropy is known it isn't fitted, which determines the other parameters far better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

Floats = NDArray[np.float64]

HUBER = 1e-3
"""The deviation of log L up to which the loss is quadratic."""
EXPONENTS = (0.05, 0.2, 0.5, 1.0)
"""Starting points of each exponent."""
FLOORS = (0.3, 0.7, 0.95)
"""Starting points of E, as fractions of the smallest loss."""
STARTS = 6
"""How many of the starting points, those with the smallest Huber loss, are refined."""
FLATTEST = 1e-3
"""Below this exponent a law is a constant, and above `STEEPEST` all but one of its points lie on the floor."""
STEEPEST = 5.0


@dataclass(frozen=True)
class Law:
    """L = floor + Σ amount_i / scale_i ** exponent_i.

    floor: E
    amounts, exponents: of each scale, such as (A, B) and (α, β)
    """

    floor: float
    amounts: tuple[float, ...]
    exponents: tuple[float, ...]

    def at(self, *scales: Floats | float) -> Floats:
        """Return the loss at these scales: parameters, and tokens if the law has two."""
        terms = (a / np.asarray(scale) ** e for a, e, scale in zip(self.amounts, self.exponents, scales))
        return self.floor + sum(terms)


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    law: the best fit
    resampled: the fits to bootstrap resamples of the runs
    residuals: log L of each run, minus the law's
    problem: why its parameters can't be identified, as a sentence; None if they can
    """

    law: Law
    resampled: Sequence[Law]
    residuals: Floats
    problem: str | None

    @property
    def is_of_tokens(self) -> bool:
        """Whether it is a law of parameters and tokens, instead of a single scale."""
        return len(self.law.exponents) == 2

    def interval(self, values: Sequence[float]) -> tuple[float, float]:
        """Return the 95 % percentile interval of something computed from each resampled law."""
        low, high = np.quantile(values, (0.025, 0.975))
        return float(low), float(high)

    @property
    def exponent_intervals(self) -> list[tuple[float, float]]:
        return [self.interval(values) for values in zip(*(other.exponents for other in self.resampled))]


def fit(
    losses: Floats,
    scales: Sequence[Floats],
    *,
    floor: float | None = None,
    resamples: int = 400,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Fit:
    """Fit a law to runs.

    Args:
        losses: (runs,), above 0, in any unit.
        scales: one or two of (runs,): parameters and tokens, or FLOPs.
        floor: E if it is known, below every loss.
        resamples: bootstrap resamples of the groups of runs.
        groups: of each run; runs of one group, such as those that share a part of their training, are resampled
            together. By default each run is a group.

    Raises:
        ValueError: there are fewer distinct points than parameters, or a loss isn't above the known floor.
    """
    free = 2 * len(scales) + (floor is None)
    points = np.stack(scales)
    if len(np.unique(points, axis=1).T) < free:
        raise ValueError(f"a law with {free} parameters needs runs at {free} or more scales")
    if floor is not None and not (losses > floor).all():
        raise ValueError("a loss is at or below the known floor")
    data = _Data(np.log(losses), np.log(points), floor)
    best = data.fit_from(data.starts())
    generator = np.random.default_rng(seed)
    members = _members(range(len(losses)) if groups is None else groups)
    drawn = [data.resampled(generator, free, members) for _ in range(resamples)]
    laws = [sample.law(sample.fit_from(best[None])) for sample in drawn]
    law = data.law(best)
    return Fit(law, laws, data.residuals(best), _problem(law, laws, losses, floor))


def _members(groups: Iterable[Hashable]) -> list[list[int]]:
    """Return the places of the runs of each group."""
    found: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        found.setdefault(group, []).append(place)
    return list(found.values())


@dataclass(frozen=True)
class _Data:
    """Logarithms of losses (R) and scales (S, R). Parameters: log A and α of each scale, then log E unless known."""

    losses_R: Floats
    scales_SR: Floats
    floor: float | None

    @property
    def log_floor(self) -> float:
        return math.log(self.floor) if self.floor else -math.inf

    def law(self, theta: Floats) -> Law:
        amounts, exponents = self.split(theta)
        floor = math.exp(theta[-1]) if self.floor is None else self.floor
        # amounts are relative to the mean scale, where they hardly depend on the exponents
        at_one = amounts + exponents * self.scales_SR.mean(1)
        return Law(floor, tuple(np.exp(at_one).tolist()), tuple(exponents.tolist()))

    def split(self, theta: Floats) -> tuple[Floats, Floats]:
        S = len(self.scales_SR)
        return theta[:S], theta[S : 2 * S]

    @property
    def centred_SR(self) -> Floats:
        return self.scales_SR - self.scales_SR.mean(1, keepdims=True)

    def terms(self, theta: Floats) -> Floats:
        """Return the logarithms of the terms that the loss is the sum of, (S + 1, R)."""
        amounts, exponents = self.split(theta)
        floor_1R = np.full((1, len(self.losses_R)), theta[-1] if self.floor is None else self.log_floor)
        return np.concatenate([amounts[:, None] - exponents[:, None] * self.centred_SR, floor_1R])

    def residuals(self, theta: Floats) -> Floats:
        return self.losses_R - logsumexp(self.terms(theta), axis=0)

    def starts(self) -> Floats:
        """Return the most promising points of a grid: E, the exponents, and how much each scale contributes."""
        S, middle = len(self.scales_SR), math.exp(float(np.median(self.losses_R)))
        least = math.exp(float(self.losses_R.min()))
        floors = [part * least for part in FLOORS] if self.floor is None else [self.floor]
        thetas = []
        for floor, exponents in itertools.product(floors, itertools.product(EXPONENTS, repeat=S)):
            for shares in ((1.0,),) if S == 1 else ((0.2, 0.8), (0.5, 0.5), (0.8, 0.2)):
                amounts = [math.log((middle - floor) * share) for share in shares]
                thetas.append([*amounts, *exponents, *([math.log(floor)] if self.floor is None else [])])
        costs = [self.cost(np.array(theta)) for theta in thetas]
        return np.array(thetas)[np.argsort(costs)[:STARTS]]

    def cost(self, theta: Floats) -> float:
        return self.cost_and_slope(theta)[0]

    def cost_and_slope(self, theta: Floats) -> tuple[float, Floats]:
        """Return the Huber loss, in units of HUBER², and its gradient."""
        terms_KR = self.terms(theta)
        predicted_R = logsumexp(terms_KR, axis=0)
        deviations_R = (predicted_R - self.losses_R) / HUBER
        inner_R = np.clip(deviations_R, -1, 1)
        cost = float((inner_R * (deviations_R - inner_R / 2)).sum())
        weighted_KR = np.exp(terms_KR - predicted_R) * inner_R / HUBER
        S = len(self.scales_SR)
        slope = [weighted_KR[:S].sum(1), -(weighted_KR[:S] * self.centred_SR).sum(1), weighted_KR[S:].sum(1)]
        return cost, np.concatenate(slope)[: len(theta)]

    def fit_from(self, starts: Floats) -> Floats:
        """Return the best parameters that are found from these starting points."""
        found = [minimize(self.cost_and_slope, start, jac=True, method="BFGS") for start in starts]
        return min(found, key=lambda result: result.fun).x

    def resampled(self, generator: np.random.Generator, free: int, members: Sequence[Sequence[int]]) -> _Data:
        while True:
            drawn = generator.integers(0, len(members), len(members))
            chosen = [place for group in drawn for place in members[group]]
            if len(np.unique(self.scales_SR[:, chosen], axis=1).T) >= free:
                return _Data(self.losses_R[chosen], self.scales_SR[:, chosen], self.floor)


def _problem(law: Law, resampled: Sequence[Law], losses: Floats, floor: float | None) -> str | None:
    """Return why a law's parameters can't be identified."""
    for at, exponent in enumerate(law.exponents):
        of = "" if len(law.exponents) == 1 else f" of {('parameters', 'tokens')[at]}"
        values = [other.exponents[at] for other in resampled]
        if not FLATTEST < exponent < STEEPEST:
            return f"the best exponent{of} is {exponent:.3g}: over this range of scales the losses follow no power law"
        if values and min(values) < FLATTEST:
            why = "the losses hardly depend on the scale, or differ too much"
            return f"some resamples have an exponent{of} of 0: {why}"
    if floor is None and resampled:
        spread = np.ptp([other.floor for other in resampled])
        if spread > float(losses.min()):
            return "the irreducible loss could be almost anything: more, or more distant, scales would determine it"
    return None
