"""Estimates with 95 % intervals: Student's t for means, and the bootstrap over pairs for everything else."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, stdtrit

from minllm.estimates import LEVEL, UNKNOWN, Estimate
from minllm.study.sample import spread

DRAWS = 4000
LEAST_RESAMPLED = 5
"""With fewer pairs, even the range of all resamples is too narrow to be a 95 % interval."""


def mean_of(values: Sequence[float] | np.ndarray) -> Estimate:
    """Return the mean of a sample with Student's interval."""
    n, (mean, sd) = len(values), spread(values)
    if n < 2:
        return Estimate(mean, UNKNOWN)
    return t_estimate(mean, sd / math.sqrt(n), n - 1)


def t_estimate(mean: float, error: float, freedom: float) -> Estimate:
    """Return an estimate from its standard error and its degrees of freedom."""
    half = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    return Estimate(mean, (mean - half, mean + half))


@functools.lru_cache(64)
def resamples(n: int) -> np.ndarray:
    """Return the weights of DRAWS samples of n pairs, drawn with replacement: (DRAWS, n), the same in every call."""
    counts = np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), DRAWS)
    return counts / n


def percentile_interval(draws: np.ndarray, n: int) -> tuple[float, float]:
    """Return the expanded percentile interval of a statistic over resamples of n pairs.

    The percentiles lie further out than 2.5 % and 97.5 %, by as much as Student's interval of a mean is wider than the
    percentile interval (Hesterberg, 1411.5279). Infinite draws stand for censored values and may be ends.
    """
    if n < LEAST_RESAMPLED:
        return UNKNOWN
    tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, LEVEL / 2)))
    ordered = np.sort(draws)
    place = min(int(tail * len(draws)), len(draws) - 1)
    return float(ordered[place]), float(ordered[-1 - place])
