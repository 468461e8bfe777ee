"""Values with their intervals, and what intervals and tests of all kinds share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

LEVEL = 0.05
UNKNOWN = (-math.inf, math.inf)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, which is infinite where there is too little to tell one."""

    value: float
    interval: tuple[float, float]

    @property
    def excludes_zero(self) -> bool:
        return not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Sums:
    """The sums of a measure's amounts and counts in each group that has any count."""

    amounts: np.ndarray
    counts: np.ndarray

    @property
    def groups(self) -> int:
        return len(self.counts)

    @property
    def value(self) -> float:
        return float(self.amounts.sum() / self.counts.sum())


def clopper_pearson(hits: float, trials: float) -> tuple[float, float]:
    """Return the exact 95 % interval of a share (Clopper and Pearson, 1934); neither number need be whole."""
    low = float(betaincinv(hits, trials - hits + 1, LEVEL / 2)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - LEVEL / 2)) if hits < trials else 1.0
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: the smallest times n, the next times n − 1, and so on, never decreasing."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def share_of(hits: np.ndarray, counts: np.ndarray) -> Estimate:
    """Return the share of hits, given the hits and the counts of each group, with its 95 % interval."""
    present = counts > 0
    sums = Sums(hits[present], counts[present])
    low, high = share_interval(sums)
    return Estimate(sums.value, (max(low, 0.0), min(high, 1.0)))


def is_constant(sums: Sums) -> bool:
    """Whether all groups have the same value, up to rounding."""
    own = sums.amounts / sums.counts
    return bool(np.ptp(own) <= 1e-12 * np.abs(own).max(initial=0.0))


def share_interval(sums: Sums) -> tuple[float, float]:
    """Return Korn and Graubard's interval of a share of clustered values.

    It is Clopper and Pearson's, of as many independent values as give the variance between groups.
    """
    share, groups = sums.value, sums.groups
    size = float(groups)
    if 0 < share < 1 and not is_constant(sums):
        if groups < 2:
            return UNKNOWN
        between = variance(sums)
        size = share * (1 - share) / between if between > 0 else math.inf
        # t quantiles, because the variance is itself estimated from so many groups
        size *= float(stdtrit(groups - 1, LEVEL / 2) / ndtri(LEVEL / 2)) ** -2
        size = min(size, float(sums.counts.sum()))
    return clopper_pearson(share * size, size)


def variance(sums: Sums) -> float:
    """Return the variance of a ratio of sums over groups, by linearisation."""
    residuals = (sums.amounts - sums.value * sums.counts) / sums.counts.sum()
    return float(sums.groups / (sums.groups - 1) * (residuals**2).sum())
