"""Boundaries of tests that are repeated while pairs are added: how small a p-value must be at each look.

A sequential p-value is the smallest error rate at which a test would have rejected by now. It stays valid whenever the
study stops, so several of them can be corrected by Holm's method like any others. The error rate is spent over the
looks by the power family of Kim and DeMets (Biometrika, 1987): after a fraction x of the planned pairs, x ** POWER of
it may have been used.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Floats = NDArray[np.float64]
Sides = Literal[1, 2]

POWER = 0.3
"""Small, so that six pairs with the same sign (p = 0.031) can be enough out of 28 planned ones."""
PATHS = 2**17
"""Simulated studies without a difference, from which the boundaries of the t tests are taken."""

EXACT_PAIRS = 16
"""Up to here all sign flips are enumerated, at most 2^15; beyond, the signs of further pairs are drawn."""

LEVELS = (1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
"""The error rates at which sequential tests are tried; a p-value is rounded up to one of them, or to 1."""

ROUNDING = (
    9  # decimals of a sum of signed differences, relative to the largest, beyond which there is only rounding
)


def spent(level: float, looks: Sequence[int], pairs: int) -> float:
    """Return how much of an error rate may have been used after `pairs` pairs."""
    return float(level * min(1.0, pairs / looks[-1]) ** POWER)


def statistic(pairs: int, mean: Floats, sd: Floats, skew: Floats, at: float | Floats = 0.0) -> Floats:
    """Return Student's t for a true mean `at`, or Hall's transformation of it (1992) if that is nearer to 0.

    Student's t rejects too often if differences are skewed. Hall's transformation removes most of the bias. Where the
    two disagree about the sign, 0 is returned. All values may be arrays.
    """
    root = math.sqrt(pairs)
    scaled = (mean - at) / sd
    transformed = scaled + skew * scaled**2 / 3 + skew**2 * scaled**3 / 27 + skew / (6 * pairs)
    agree = np.sign(scaled) == np.sign(transformed)
    nearer = np.minimum(np.abs(scaled), np.abs(transformed))
    return np.where(agree, np.sign(scaled) * nearer * root, 0.0)


def interval(pairs: int, mean: float, sd: float, skew: float, level: float) -> tuple[float, float]:
    """Return the true means that `statistic` doesn't reject at a two-sided level."""
    limit, root = float(stdtrit(pairs - 1, 1 - level / 2)), math.sqrt(pairs)
    ends = [limit / root, -limit / root]
    if abs(skew) > 1e-6:  # the inverse of Hall's transformation, which is the identity without skewness
        ends += [
            3 / skew * (float(np.cbrt(1 + skew * (end - skew / (6 * pairs)))) - 1) for end in tuple(ends)
        ]
    return mean - sd * max(ends), mean - sd * min(ends)


def skewness(pairs: int, second: Floats, third: Floats) -> Floats:
    """Return the sample skewness G1 from the central moments; 0 for fewer than three pairs or no spread."""
    if pairs < 3:
        return np.zeros_like(second)
    safe = np.where(second > 0, second, 1.0)
    return np.where(second > 0, math.sqrt(pairs * (pairs - 1)) / (pairs - 2) * third / safe**1.5, 0.0)


@functools.lru_cache(maxsize=1024)
def boundary(looks: tuple[int, ...], level: float, sides: Sides) -> tuple[float, ...]:
    """Return the p-value that a t test must reach at each look, so that its error rate over all looks is `level`.

    The boundaries are quantiles over simulated studies of normal differences. Neither the mean nor the standard
    deviation matters, so they hold exactly, but for the error of the simulation.
    """
    if len(looks) == 1:
        return (level,)
    lower = _null(looks)
    p_values = lower if sides == 1 else 2 * np.minimum(lower, 1 - lower)
    allowed = [math.floor(spent(level, looks, pairs) * PATHS) for pairs in looks]
    return tuple(min(max(0.0, limit), level) for limit in thresholds(p_values, allowed))


@functools.lru_cache(maxsize=4)
def _null(looks: tuple[int, ...]) -> NDArray[np.float32]:
    """Return one-sided p-values at each look of studies without a difference."""
    random = np.random.default_rng(0)
    sums = np.zeros((3, PATHS))
    found = np.empty((PATHS, len(looks)), np.float32, order="F")
    for pairs in range(1, looks[-1] + 1):
        drawn = random.standard_normal(PATHS)
        sums += drawn, drawn**2, drawn**3
        if pairs in looks:
            first, second, third = sums / pairs
            variance = second - first**2
            skew = skewness(pairs, variance, third - 3 * first * second + 2 * first**3)
            sd = np.sqrt(variance * pairs / max(1, pairs - 1)) if pairs > 1 else np.full(PATHS, np.inf)
            found[:, looks.index(pairs)] = stdtr(max(1, pairs - 1), statistic(pairs, first, sd, skew))
    return found


def thresholds(paths: NDArray[np.floating], allowed: Sequence[int]) -> list[float]:
    """Return how small a value must be at each look to reject, from studies without a difference.

    Args:
        paths: a row for each study and a column for each look; small values reject.
        allowed: how many studies may have been rejected after each look.
    """
    alive = np.arange(len(paths))
    found = []
    for column, total in zip(paths.T, allowed):
        values = column[alive]
        left = total - (len(paths) - len(alive))
        if left <= 0:
            found.append(-math.inf)
            continue
        within = values < np.partition(values, left)[left] if left < len(values) else values < math.inf
        found.append(float(values[within].max()) if within.any() else -math.inf)
        alive = alive[~within]
    return found


def sequential_p(rejects: Callable[[float], bool], levels: Sequence[float], alpha: float) -> float:
    """Return the smallest of the increasing levels at which a test rejects; 1.0 if there is none.

    With more to spend at an early look, a later one may have less left, so a test can reject at one level and not at
    a larger one. To be valid, a p-value of at most `alpha`, which is one of the levels, needs all levels from it up to
    `alpha` to reject.
    """
    at = levels.index(alpha)
    if not rejects(alpha):
        return next((level for level in levels[at + 1 :] if rejects(level)), 1.0)
    below = itertools.takewhile(rejects, reversed(levels[:at]))
    return min(below, default=alpha)


class SignFlips:
    """The sign-flip test of one contest at each of its looks.

    If two arms are equal, each difference could equally well have the opposite sign, whatever its size. That holds for
    the sums at all looks together, so the boundaries are exact for any symmetric distribution. A pair whose arm or
    baseline diverged has an infinite difference; from then on, the ranks of the sizes are summed instead (Wilcoxon).
    """

    def __init__(self, differences: Sequence[float], looks: Sequence[int], planned: Sequence[int]):
        """Args:
        looks: the numbers of pairs at which the differences are tested.
        planned: those numbers and the later ones.
        """
        self.looks, self.planned = list(looks), planned
        signs = _signs(self.looks[-1])
        self.rows = len(signs)
        self.sums = np.empty((self.rows, len(self.looks)), order="F")
        self.observed = []
        for column, pairs in enumerate(self.looks):
            seen = np.array(differences[:pairs], dtype=float)
            weights = sizes(seen)
            weights /= max(weights.sum(), 1e-300)
            self.sums[:, column] = -np.round(np.abs(signs[:, :pairs] @ weights), ROUNDING)
            self.observed.append(round(float(np.sign(seen) @ weights), ROUNDING))

    def p_value(self, look: int) -> float:
        """Return the fraction of sign flips whose sum is at least as far from 0, at one look."""
        extreme = int(np.count_nonzero(self.sums[:, look] <= -abs(self.observed[look])))
        drawn = int(self.looks[look] > EXACT_PAIRS)
        return (drawn + extreme) / (drawn + self.rows)

    def sequential(self, look: int, levels: Sequence[float], alpha: float) -> float:
        """Return the sequential p-value after the looks up to this one."""
        if len(self.planned) == 1:
            return self.p_value(look)
        return sequential_p(lambda level: any(self.rejections(look, level)), levels, alpha)

    def rejections(self, look: int, level: float) -> list[bool]:
        """Return which looks up to this one reject, at an error rate over all looks."""
        if len(self.planned) == 1:
            return [self.p_value(look) <= level]
        allowed = [self._allowed(level, pairs) for pairs in self.looks[: look + 1]]
        limits = thresholds(self.sums[:, : look + 1], allowed)
        return [-abs(seen) <= limit for seen, limit in zip(self.observed, limits)]

    def _allowed(self, level: float, pairs: int) -> int:
        share = spent(level, self.planned, pairs)
        drawn = int(pairs > EXACT_PAIRS)  # the observed signs count as one of the drawn
        return math.floor(share * (self.rows + drawn) * (1 + 1e-12)) - drawn


def sizes(differences: Floats) -> Floats:
    """Return the sizes of differences, or their ranks among those that aren't 0 if one is infinite."""
    found = np.abs(differences)
    if np.isfinite(found).all():
        return found
    from scipy.stats import rankdata  # takes a second to import, and is rarely needed

    ranks = np.zeros(len(found))
    ranks[found > 0] = rankdata(found[found > 0])
    return ranks


@functools.lru_cache(maxsize=32)
def _signs(pairs: int) -> Floats:
    """Return sign flips, one in each row. The first sign is fixed, because flipping all doesn't change the distance.

    The first columns don't depend on the number of pairs, so that a look has the same result when it is repeated.
    """
    exact = min(pairs, EXACT_PAIRS)
    numbers = np.arange(2 ** (exact - 1) if exact else 1)
    columns = [np.ones(len(numbers))] if exact else []
    columns += [1.0 - 2 * (numbers >> bit & 1) for bit in range(exact - 1)]
    columns += [
        np.random.default_rng(column).choice((-1.0, 1.0), len(numbers)) for column in range(exact, pairs)
    ]
    return np.stack(columns, axis=1) if columns else np.ones((1, 0))
