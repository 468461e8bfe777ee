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

POWER = 0.7
"""Small enough for seven pairs of the same sign (p = 0.016) to settle a contest of 32 planned ones, and large enough to
leave the later looks most of the error rate, on which the power against smaller differences depends."""
PATHS = 2**17
"""Simulated studies without a difference, from which the boundaries of the t tests are taken."""

EXACT_PAIRS = 16
"""Up to here all sign flips are enumerated, at most 2^15; beyond, the signs of further pairs are drawn."""
FAR = 0.05
"""Up to this error rate only the sign flips that are far from 0 at some look are kept, to save time."""
GRID = 2**16
"""Steps in the sum of all sizes when the sign flips of more pairs are counted."""

LEVELS = (
    *(1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01),
    *(0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7),
)
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
    part = skew * scaled / 3
    transformed = scaled * (1 + part + part**2 / 3) + skew / (6 * pairs)
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
    return np.where(
        second > 0, math.sqrt(pairs * (pairs - 1)) / (pairs - 2) * third / (safe * np.sqrt(safe)), 0.0
    )


@functools.lru_cache(maxsize=1024)
def boundary(looks: tuple[int, ...], level: float, sides: Sides) -> tuple[float, ...]:
    """Return the p-value that a t test must reach at each look, so that its error rate over all looks is `level`.

    The boundaries are quantiles over simulated studies of normal differences. Neither the mean nor the standard
    deviation matters, so they hold exactly, but for the error of the simulation. None is above `level`.
    """
    if len(looks) == 1:
        return (level,)
    freedom = np.maximum(1, np.array(looks) - 1)
    paths = _null(looks) if sides == 1 else -np.abs(_null(looks))
    near = paths <= stdtrit(freedom, level / sides).astype(np.float32)
    some = near.any(axis=1)  # no other study is ever rejected
    allowed = [math.floor(spent(level, looks, pairs) * PATHS) for pairs in looks]
    limits = thresholds(np.where(near[some], paths[some], np.inf), allowed)
    return tuple(min(level, sides * float(stdtr(df, limit))) for df, limit in zip(freedom, limits))


@functools.lru_cache(maxsize=4)
def _null(looks: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the t statistics at each look of studies without a difference."""
    random = np.random.default_rng(0)
    sums = np.zeros((3, PATHS))
    statistics = np.zeros((PATHS, len(looks)), np.float32, order="F")
    for pairs in range(1, looks[-1] + 1):
        drawn = random.standard_normal(PATHS)
        squared = drawn**2
        sums += drawn, squared, squared * drawn
        if pairs in looks and pairs > 1:
            first, second, third = sums / pairs
            variance = second - first**2
            skew = skewness(pairs, variance, third - first * (3 * second - 2 * first**2))
            sd = np.sqrt(variance * pairs / (pairs - 1))
            statistics[:, looks.index(pairs)] = statistic(pairs, first, sd, skew)
    return statistics


def thresholds(paths: NDArray[np.floating], allowed: Sequence[int]) -> list[float]:
    """Return how small a value must be at each look to reject, from studies without a difference.

    Args:
        paths: a row for each study and a column for each look; small values reject, infinite ones never.
        allowed: how many studies may have been rejected after each look.
    """
    alive = np.arange(len(paths))
    limits = []
    for column, total in zip(paths.T, allowed):
        values = column[alive]
        left = total - (len(paths) - len(alive))
        if left <= 0:
            limits.append(-math.inf)
            continue
        least = np.partition(values, left)[left] if left < len(values) else math.inf
        within = values < least
        limits.append(float(values[within].max()) if within.any() else -math.inf)
        alive = alive[~within]
    return limits


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
        self.weights, self.observed = [], []
        self._p_values: dict[int, float] = {}
        of_looks = np.zeros((len(self.looks), self.looks[-1]))  # a pair weighs nothing in the looks before it
        for row, pairs in zip(of_looks, self.looks):
            seen = np.array(differences[:pairs], dtype=float)
            weights = row[:pairs]
            weights[:] = sizes(seen)
            weights /= max(weights.sum(), 1e-300)
            self.weights.append(weights)
            self.observed.append(round(float(np.sign(seen) @ weights), ROUNDING))
        sums = of_looks @ signs.T
        np.abs(sums, out=sums)
        np.negative(np.round(sums, ROUNDING, out=sums), out=sums)
        self.sums = sums.T

    def p_value(self, look: int) -> float:
        """Return the fraction of all sign flips whose sum is at least as far from 0, at one look."""
        if look not in self._p_values:
            self._p_values[look] = self._share_as_far(look)
        return self._p_values[look]

    def _share_as_far(self, look: int) -> float:
        if self.looks[look] > EXACT_PAIRS:
            return tail(self.weights[look], self.observed[look])
        return float(np.mean(self.sums[:, look] <= -abs(self.observed[look])))

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
        sums = self._far if level <= FAR else self.sums
        limits = thresholds(sums[:, : look + 1], allowed)
        return [-abs(seen) <= limit for seen, limit in zip(self.observed, limits)]

    @functools.cached_property
    def _far(self) -> Floats:
        """The sums of the sign flips that can be rejected at a level of at most FAR, which are few."""
        allowed = [max(0, self._allowed(FAR, pairs)) for pairs in self.looks]
        limits = [np.partition(column, total)[total] for column, total in zip(self.sums.T, allowed)]
        return np.asfortranarray(self.sums[(self.sums <= limits).any(axis=1)])

    def _allowed(self, level: float, pairs: int) -> int:
        share = spent(level, self.planned, pairs)
        drawn = int(pairs > EXACT_PAIRS)  # the observed signs count as one of the drawn
        return math.floor(share * (self.rows + drawn) * (1 + 1e-12)) - drawn


def tail(weights: Floats, observed: float) -> float:
    """Return the share of all sign flips whose sum is at least as far from 0 as what was observed.

    The weights are rounded to a grid, on which the distribution of the sum is built up weight by weight. Flips that
    are at least as far but for rounding are counted, so the result isn't too small.
    """
    cells = np.rint(weights * GRID).astype(int)
    chances = np.zeros(cells.sum() + 1)  # of the sum of the weights with a positive sign
    chances[0] = 1.0
    for cell in cells:
        moved = chances.copy()
        moved[cell:] += chances[: len(chances) - cell]
        chances = moved / 2
    first = math.ceil((len(chances) - 1 + abs(observed) * GRID - len(cells) / 2) / 2)
    return min(1.0, 2 * float(chances[max(0, first) :].sum()))


def sizes(differences: Floats) -> Floats:
    """Return the sizes of differences, or their ranks among those that aren't 0 if one is infinite."""
    magnitudes = np.abs(differences)
    if np.isfinite(magnitudes).all():
        return magnitudes
    from scipy.stats import rankdata  # takes a second to import, and is rarely needed

    ranks = np.zeros(len(magnitudes))
    ranks[magnitudes > 0] = rankdata(magnitudes[magnitudes > 0])
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
