"""95 % intervals of what was measured of samples. Groups of samples are resampled, not samples.

Continuations of the same beginning resemble each other, so ten of them tell less than continuations of ten beginnings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, stdtrit

from minllm.estimates import LEVEL, UNKNOWN, Estimate, Sums, is_constant, share_interval
from minllm.grading.grades import Measure, Values

RESAMPLES = 2000
LEAST_GROUPS = 5
"""With fewer, resampling can't give a 95 % interval."""
RANGES = {"share": (0.0, 1.0), "out of 10": (0.0, 10.0)}
"""The lowest and highest possible values of units that have them."""


def estimate(measure: Measure, values: Values, groups: Sequence[int]) -> Estimate | None:
    """Return the ratio of a measure's sums with its interval; None if no sample has a value.

    Shares have Korn and Graubard's interval: Clopper and Pearson's, of as many independent values as give the variance
    between groups. Other values are resampled (BCa). If all values are equal, the interval has those values that the
    mean could have if so many groups didn't show that another value is possible.

    Args:
        groups: of each sample.
    """
    sums = by_group(values, groups)
    if not sums.groups:
        return None
    value = sums.value
    if measure.unit == "share":
        return Estimate(value, share_interval(sums))
    if is_constant(sums):
        return Estimate(value, constant_interval(measure, value, sums.groups))
    return Estimate(value, resampled(sums))


def by_group(values: Values, groups: Sequence[int]) -> Sums:
    """Return the sums of the groups that have any count."""
    sums = _summed(values, np.unique(np.asarray(groups), return_inverse=True)[1])
    present = sums.counts > 0
    return Sums(sums.amounts[present], sums.counts[present])


def _summed(values: Values, places: np.ndarray) -> Sums:
    amounts, counts = np.asarray(values.amounts, dtype=float), np.asarray(values.counts, dtype=float)
    return Sums(np.bincount(places, np.where(counts > 0, amounts, 0.0)), np.bincount(places, counts))


def constant_interval(measure: Measure, value: float, groups: int) -> tuple[float, float]:
    """Return the means that are possible if all of some groups have the same value.

    With p = 1 − 0.025^(1/n), n groups show nothing else with a probability of 2.5 % if a share p of groups is at the
    end of the range; of a share it is Clopper and Pearson's interval.
    """
    if measure.unit not in RANGES:
        return UNKNOWN
    low, high = RANGES[measure.unit]
    unseen = unseen_share(groups)
    return value - unseen * (value - low), value + unseen * (high - value)


def unseen_share(groups: int) -> float:
    """Return the largest share of groups that so many of them may fail to show, with a probability of 2.5 %."""
    return 1 - (LEVEL / 2) ** (1 / groups)


def resampled(sums: Sums) -> tuple[float, float]:
    """Return the BCa interval of a ratio of sums over resampled groups.

    Its level is as much higher as Student's interval of a mean is wider than the normal one (Hesterberg, 1411.5279).
    """
    from scipy.stats import bootstrap  # takes half a second to import

    if (n := sums.groups) < LEAST_GROUPS:
        return UNKNOWN
    tail = ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, LEVEL / 2))
    result = bootstrap(
        (sums.amounts, sums.counts),
        lambda amounts, counts, axis: amounts.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=250,
        confidence_level=1 - 2 * float(tail),
        method="BCa",
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else UNKNOWN


def linearised(arm: Values, baseline: Values, groups: Sequence[int]) -> np.ndarray:
    """Return a value for each group that two runs share, whose mean is the difference between the runs' ratios.

    They are the first-order terms of the difference, and as good as independent, so they can be tested like the
    differences of pairs. Empty if a run has no value.

    Args:
        groups: of each sample, the same in both runs.
    """
    _, places = np.unique(np.asarray(groups), return_inverse=True)
    (of_arm, for_arm), (of_baseline, for_baseline) = (_terms(values, places) for values in (arm, baseline))
    either = (of_arm.counts > 0) | (of_baseline.counts > 0)
    if not for_arm.size or not for_baseline.size:
        return np.empty(0)
    terms = (for_arm - for_baseline)[either]
    return of_arm.value - of_baseline.value + len(terms) * terms


def _terms(values: Values, places: np.ndarray) -> tuple[Sums, np.ndarray]:
    """Return the sums of all groups, and their first-order terms; no terms if no group has a count."""
    sums = _summed(values, places)
    total = sums.counts.sum()
    return sums, ((sums.amounts - sums.value * sums.counts) / total if total else np.empty(0))
