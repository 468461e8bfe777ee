"""The differences of some pairs, and their t tests."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from minllm.study.boundaries import interval, skewness, statistic


@dataclass(frozen=True)
class Sample:
    """Differences with their summary statistics.

    differences: infinite where one of a pair diverged, NaN where both did
    mean, sd, skew: of the finite ones; the standard deviation can be divided by
    """

    differences: Sequence[float]
    mean: float
    sd: float
    skew: float

    @property
    def pairs(self) -> int:
        return len(self.differences)

    @functools.cached_property
    def finite(self) -> int:
        """The number of pairs in which neither diverged."""
        return sum(map(math.isfinite, self.differences))

    @property
    def is_finite(self) -> bool:
        return self.finite == self.pairs

    @property
    def known_mean(self) -> float | None:
        """The mean; None if there is no finite difference."""
        return self.mean if self.finite else None

    @property
    def can_be_tested(self) -> bool:
        """Whether a t test can be computed."""
        return self.pairs > 1 and self.is_finite

    @property
    def diverged(self) -> tuple[int, int]:
        """In how many pairs only the arm, and only the baseline, diverged."""
        differences = list(self.differences)
        return differences.count(math.inf), differences.count(-math.inf)

    @property
    def p_t(self) -> float:
        """The two-sided p-value for no difference."""
        return 2 * float(stdtr(self.pairs - 1, -abs(self._t(0.0)))) if self.can_be_tested else 1.0

    def p_equivalence(self, margin: float) -> float:
        """Return the larger p-value of the two one-sided tests."""
        if not self.can_be_tested:
            return 1.0
        return float(stdtr(self.pairs - 1, max(-self._t(-margin), self._t(margin))))

    def interval(self, level: float) -> tuple[float, float]:
        """Return the interval of the differences that aren't rejected at a two-sided level."""
        if not self.can_be_tested:
            return -math.inf, math.inf
        return interval(self.pairs, self.mean, self.sd, self.skew, level)

    def _t(self, at: float) -> float:
        values = (np.asarray(value) for value in (self.mean, self.sd, self.skew))
        return float(statistic(self.pairs, *values, at))


def sample_of(differences: Sequence[float], noise: float) -> Sample:
    """Return a sample; deviations of at most `noise` are rounding error."""
    finite = list(filter(math.isfinite, differences))
    mean, sd = spread(finite) if finite else (0.0, 0.0)
    moments = [
        math.fsum((difference - mean) ** power for difference in finite) / max(1, len(finite))
        for power in (2, 3)
    ]
    skew = float(skewness(len(finite), *map(np.asarray, moments))) if sd > noise else 0.0
    return Sample(differences, mean, max(sd, noise), skew)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation (with n − 1; 0.0 for one value). ValueError if there are no values."""
    if len(values) == 0:
        raise ValueError("the mean of no values is undefined")
    mean = math.fsum(values) / len(values)  # exact, so that the order of the seeds doesn't matter
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
