"""Values with their intervals, and what intervals and tests of all kinds share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import betaincinv

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
