"""Rank correlations of models on two datasets, and the pairs of models that change places.

Intervals are from a bootstrap at two levels (Davison and Hinkley, Bootstrap Methods and their Application, 1997,
section 3.8): models are drawn with replacement, and for each of them its seeds, on each dataset apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from minllm.estimates import LEVEL, UNKNOWN, Estimate, holm
from minllm.study.intervals import DRAWS, LEAST_RESAMPLED
from minllm.study.sample import spread

CERTAIN = 0.05
"""The probability of calling any change of places certain where there is none."""

Values = Sequence[Sequence[float]]
"""The losses of each model, by seed; infinite where training diverged."""


@dataclass(frozen=True)
class Swap:
    """Two models of which one is better on the first dataset and the other on the second.

    models: their places among the models; the first of the two is better on the first dataset
    differences: the loss of the first minus that of the second, on each dataset
    p: for no change of places, with Holm's correction over all pairs of models
    """

    models: tuple[int, int]
    differences: tuple[float, float]
    p: float

    @property
    def is_certain(self) -> bool:
        """Whether it is more than noise between seeds."""
        return self.p <= CERTAIN


def rank_correlations(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Spearman's ρ and Kendall's τ_b of the last axis, in which equal values share a rank; NaN if all are equal.

    The sum of a value's signs against all others is twice its rank, up to a constant.
    """
    of_x, of_y = (
        1.0 * (z[..., :, None] > z[..., None, :]) - 1.0 * (z[..., :, None] < z[..., None, :]) for z in (x, y)
    )
    with np.errstate(invalid="ignore"):
        tau = (of_x * of_y).sum((-2, -1)) / np.sqrt((of_x**2).sum((-2, -1)) * (of_y**2).sum((-2, -1)))
        ranks_x, ranks_y = of_x.sum(-1), of_y.sum(-1)
        rho = (ranks_x * ranks_y).sum(-1) / np.sqrt((ranks_x**2).sum(-1) * (ranks_y**2).sum(-1))
    return rho, tau


def correlations(first: Values, second: Values) -> tuple[Estimate, Estimate]:
    """Return Spearman's ρ and Kendall's τ_b of the mean losses of models on two datasets, with 95 % intervals."""
    random = np.random.default_rng(0)
    models = len(first)
    estimates = rank_correlations(*(np.array([_mean(own) for own in values]) for values in (first, second)))
    chosen = random.integers(models, size=(DRAWS, models))
    drawn = [
        np.take_along_axis(np.column_stack([_drawn_means(own, random) for own in values]), chosen, axis=1)
        for values in (first, second)
    ]
    found = []
    for value, draws in zip(estimates, rank_correlations(*drawn)):
        known = draws[~np.isnan(draws)]  # all models of a draw may be equal
        is_known = models >= LEAST_RESAMPLED and len(known)
        low, high = np.quantile(known, [LEVEL / 2, 1 - LEVEL / 2]) if is_known else UNKNOWN
        found.append(Estimate(float(value), (float(low), float(high))))
    return found[0], found[1]


def swaps(first: Values, second: Values) -> list[Swap]:
    """Return the pairs of models that change places, those that are the most certain first.

    A change of places is certain if the difference on each dataset is (an intersection-union test: the larger of the
    two p-values counts). The t tests use the standard deviation between seeds of all models together, or of the model
    itself where it is larger.
    """
    datasets = (first, second)
    pairs = list(itertools.combinations(range(len(first)), 2))
    moved = [_sign(first, pair) * _sign(second, pair) < 0 for pair in pairs]
    p_values = [
        max(_p_value(values, pair) for values in datasets) if moves else 1.0
        for pair, moves in zip(pairs, moved)
    ]
    found = []
    for pair, moves, p in zip(pairs, moved, holm(p_values)):
        if moves:
            better, worse = pair if _sign(first, pair) < 0 else pair[::-1]
            one, other = (_mean(values[better]) - _mean(values[worse]) for values in datasets)
            found.append(Swap((better, worse), (one, other), p))
    return sorted(found, key=lambda swap: swap.p)


def _mean(losses: Sequence[float]) -> float:
    return math.fsum(losses) / len(losses)


def _sign(values: Values, pair: tuple[int, int]) -> int:
    """Return 1 if the first of two models has the higher loss, −1 if the lower, and 0 if they are equal."""
    one, other = (_mean(values[model]) for model in pair)
    return (one > other) - (one < other)


def _drawn_means(losses: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """Return the means of DRAWS samples of seeds."""
    return np.asarray(losses)[random.integers(len(losses), size=(DRAWS, len(losses)))].mean(axis=1)


def _p_value(values: Values, pair: tuple[int, int]) -> float:
    """Return the two-sided p-value for no difference between two models on a dataset; 1.0 if one of them diverged."""
    finite = [losses for losses in values if all(map(math.isfinite, losses))]
    freedom = sum(len(losses) - 1 for losses in finite)
    own = [values[model] for model in pair]
    if freedom < 1 or not all(map(math.isfinite, itertools.chain(*own))):
        return 1.0
    pooled = math.fsum((len(losses) - 1) * spread(losses)[1] ** 2 for losses in finite) / freedom
    error = math.sqrt(math.fsum(max(pooled, spread(losses)[1] ** 2) / len(losses) for losses in own))
    difference = abs(_mean(own[0]) - _mean(own[1]))
    if error == 0:
        return 0.0 if difference else 1.0
    return 2 * float(stdtr(freedom, -difference / error))
