"""Scaling laws: the loss of one arm as a function of its parameters, tokens or FLOPs.

    L(N, D) = E + A / N^α + B / D^β          L(N) = E + A / N^α          L(C) = E + A / C^α

as fitted to runs by Hoffmann et al. (2203.15556) and again by Besiroglu et al. (2404.10102): the Huber loss of log L,
summed over runs, minimised from a grid of starting points. E is the loss that no size can improve on; on a corpus whose
entropy is known it isn't fitted, which determines the other parameters far better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
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
MOST_STEPS, FARTHEST, SETTLED = 300, 1.0, 1e-7
"""Of a descent: how many steps it has, how far one may lead, and the relative gain below which it ends."""
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
    once_1R = np.ones((1, len(losses)))
    thetas, costs = data.descended(data.starts(), once_1R)
    best = thetas[np.argmin(costs)]
    counts_GR = _resampled(points, groups, free, resamples, np.random.default_rng(seed))
    thetas, _ = data.descended(np.tile(best, (resamples, 1)), counts_GR)
    law, laws = data.law(best), [data.law(theta) for theta in thetas]
    residuals = data.losses_R - data.predicted(best[None])[0]
    return Fit(law, laws, residuals, _problem(law, laws, losses, floor))


def _resampled(
    points_SR: Floats,
    groups: Sequence[Hashable] | None,
    free: int,
    resamples: int,
    generator: np.random.Generator,
) -> Floats:
    """Return how often each run is in each of some bootstrap resamples, (resamples, runs), that determine a law."""
    R = points_SR.shape[1]
    _, of_run = np.unique([str(group) for group in groups or range(R)], return_inverse=True)
    n_groups = of_run.max() + 1
    drawn: list[Floats] = []
    while len(drawn) < resamples:
        counts_R = np.bincount(generator.integers(0, n_groups, n_groups), minlength=n_groups)[of_run]
        if len(np.unique(points_SR[:, counts_R > 0], axis=1).T) >= free:
            drawn.append(counts_R.astype(float))
    return np.array(drawn).reshape(resamples, R)


@dataclass(frozen=True)
class _Data:
    """Logarithms of losses (R) and scales (S, R).

    Parameters (K) are log A of each scale, α of each, and then log E unless it is known. Several sets of them (G) are
    improved at once.
    """

    losses_R: Floats
    scales_SR: Floats
    floor: float | None

    def law(self, theta_K: Floats) -> Law:
        S = len(self.scales_SR)
        amounts, exponents = theta_K[:S], theta_K[S : 2 * S]
        floor = math.exp(theta_K[-1]) if self.floor is None else self.floor
        # amounts are relative to the mean scale, where they hardly depend on the exponents
        at_one = amounts + exponents * self.scales_SR.mean(1)
        return Law(floor, tuple(np.exp(at_one).tolist()), tuple(exponents.tolist()))

    @property
    def centred_SR(self) -> Floats:
        return self.scales_SR - self.scales_SR.mean(1, keepdims=True)

    def terms(self, theta_GK: Floats) -> Floats:
        """Return the logarithms of the terms that the loss is the sum of, (G, S + 1, R)."""
        S = len(self.scales_SR)
        terms_GSR = theta_GK[:, :S, None] - theta_GK[:, S : 2 * S, None] * self.centred_SR
        if self.floor is None:
            floor_G11 = theta_GK[:, -1:, None]
        else:
            floor_G11 = np.full((len(theta_GK), 1, 1), math.log(self.floor) if self.floor else -np.inf)
        return np.concatenate([terms_GSR, np.broadcast_to(floor_G11, terms_GSR[:, :1].shape)], axis=1)

    def predicted(self, theta_GK: Floats) -> Floats:
        return logsumexp(self.terms(theta_GK), axis=1)

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
        grid_GK = np.array(thetas)
        costs_G = self.cost(grid_GK, np.ones((1, len(self.losses_R))))
        return grid_GK[np.argsort(costs_G)[:STARTS]]

    def cost(self, theta_GK: Floats, counts_GR: Floats) -> Floats:
        """Return the Huber loss, in units of HUBER², (G)."""
        deviations_GR = (self.predicted(theta_GK) - self.losses_R) / HUBER
        inner_GR = np.clip(deviations_GR, -1, 1)
        return (counts_GR * inner_GR * (deviations_GR - inner_GR / 2)).sum(1)

    def descended(self, theta_GK: Floats, counts_GR: Floats) -> tuple[Floats, Floats]:
        """Return parameters at a minimum near the given ones, and their Huber losses.

        Levenberg-Marquardt steps, in which each run has the weight that makes the square of its deviation its Huber
        loss. A step that doesn't lower the loss is taken back, and a shorter one tried.

        Args:
            counts_GR: how often each run counts, for each set of parameters or for all.
        """
        costs_G = self.cost(theta_GK, counts_GR)
        damping_G = np.full(len(theta_GK), 1e-3)
        for _ in range(MOST_STEPS):
            tried_GK = theta_GK - np.clip(self.step(theta_GK, counts_GR, damping_G), -FARTHEST, FARTHEST)
            new_G = self.cost(tried_GK, counts_GR)
            better_G = new_G < costs_G
            gained = np.where(better_G, costs_G - new_G, 0.0)
            theta_GK = np.where(better_G[:, None], tried_GK, theta_GK)
            costs_G = np.where(better_G, new_G, costs_G)
            damping_G = np.clip(np.where(better_G, damping_G / 5, damping_G * 5), 1e-9, 1e9)
            if ((gained <= SETTLED * costs_G) & (better_G | (damping_G > 1e6))).all():
                break
        return theta_GK, costs_G

    def step(self, theta_GK: Floats, counts_GR: Floats, damping_G: Floats) -> Floats:
        """Return the step that would be taken backwards from each set of parameters."""
        terms_GTR = self.terms(theta_GK)
        predicted_GR = logsumexp(terms_GTR, axis=1)
        deviations_GR = predicted_GR - self.losses_R
        weights_GR = counts_GR * np.minimum(1.0, HUBER / np.maximum(np.abs(deviations_GR), 1e-300))
        shares_GTR = np.exp(terms_GTR - predicted_GR[:, None])
        S = len(self.scales_SR)
        amounts_GSR, floor_G1R = shares_GTR[:, :S], shares_GTR[:, S:]
        slopes = [amounts_GSR, -amounts_GSR * self.centred_SR, *([floor_G1R] if self.floor is None else [])]
        slopes_GKR = np.concatenate(slopes, axis=1)
        weighted_GKR = slopes_GKR * weights_GR[:, None]
        bend_GKK = weighted_GKR @ slopes_GKR.swapaxes(1, 2)
        diagonal_GK = np.einsum("gkk->gk", bend_GKK)
        ridge_GK = damping_G[:, None] * diagonal_GK + 1e-12
        slope_GK = np.einsum("gkr,gr->gk", weighted_GKR, deviations_GR)
        damped_GKK = bend_GKK + ridge_GK[:, :, None] * np.eye(theta_GK.shape[1])
        return np.linalg.solve(damped_GKK, slope_GK[..., None])[..., 0]


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
