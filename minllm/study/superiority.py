"""How often an arm wins: with the same seed, and with any two seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri

from minllm.estimates import LEVEL, Estimate, clopper_pearson

NEAR_AN_END = 1e-9


@dataclass(frozen=True)
class Wins:
    """How many seeds the arm won, lost and tied against the baseline.

    share: of the seeds won, with the exact interval of Clopper and Pearson; a tie counts as not won
    """

    won: int
    lost: int
    tied: int
    share: Estimate

    @property
    def seeds(self) -> int:
        return self.won + self.lost + self.tied


@dataclass(frozen=True)
class Superiority:
    """The probability that a run of the arm has a lower loss than a run of the baseline with another seed.

    probability: over all pairs of runs, with half of the ties; Newcombe's interval (2006, method 5)
    p: of the Mann–Whitney test, two-sided
    """

    probability: Estimate
    p: float


def wins(differences: Sequence[float]) -> Wins:
    """Count the seeds won from the differences, arm minus baseline; NaN, where both diverged, is a tie."""
    won, lost = (
        sum(difference < 0 for difference in differences),
        sum(difference > 0 for difference in differences),
    )
    return Wins(won, lost, len(differences) - won - lost, share_of(won, len(differences)))


@functools.lru_cache(1024)  # the same in many contests
def share_of(won: int, of: int) -> Estimate:
    """Return a proportion with its exact interval."""
    return Estimate(won / of, clopper_pearson(won, of))


def superiority(arm: Sequence[float], baseline: Sequence[float]) -> Superiority:
    """Compare all runs of two arms, whatever their seeds.

    The interval treats the arms as independent. Runs with the same seed usually rise and fall together, so it is
    rather too wide than too narrow.
    """
    from scipy.stats import mannwhitneyu

    test = mannwhitneyu(baseline, arm)
    value = float(test.statistic) / (len(arm) * len(baseline))
    p = 1.0 if math.isnan(test.pvalue) else float(test.pvalue)  # if all values are equal
    return Superiority(Estimate(value, newcombe(value, len(arm), len(baseline))), p)


def newcombe(value: float, m: int, n: int) -> tuple[float, float]:
    """Return the interval of the probability of superiority: the values whose own variance doesn't reject `value`.

    The variance is that of Hanley and McNeil with the mean of both sample sizes. Unlike one from the estimate's own
    variance, the interval isn't empty where one sample lies wholly below the other.
    """
    from scipy.optimize import brentq

    z = float(ndtri(1 - LEVEL / 2))
    size = (m + n) / 2 - 1

    def excess(p: float) -> float:
        variance = p * (1 - p) * (1 + size * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n)
        return (value - p) ** 2 - z**2 * variance

    # at 0 and at 1 the variance is 0, so that the excess has a root there too
    low = 0.0 if value <= 0 else brentq(excess, 0.0, min(value, 1 - NEAR_AN_END))
    high = 1.0 if value >= 1 else brentq(excess, max(value, NEAR_AN_END), 1.0)
    return float(low), float(high)
