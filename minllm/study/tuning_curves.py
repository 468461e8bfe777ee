"""Tuning curves: the best metric to expect after k trials of tuning, with confidence bands (2311.09480).

The trials are taken as independent draws of the tuned hyper-parameters. The curve is the median of the best of k such
draws, and its band holds for all k at once, whatever the distribution. Only the order of the trials matters for
it, so trials that diverged need no value: they are the worst.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.975
"""Of each arm's band, so that the bands of two arms hold together with a probability of 95 %."""


@dataclass(frozen=True)
class TuningCurve:
    """The best metric after 1, 2, … trials.

    best: the median; infinite if the best trial has probably diverged
    low, high: the ends of the confidence band; infinite where there are too few trials for a bound
    """

    trials: Sequence[int]
    best: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def tuning_curve(losses: Sequence[float | None]) -> TuningCurve:
    """Return the tuning curve of an arm from the metric of each of its trials; None is a trial that diverged."""
    ordered = sorted(math.inf if loss is None else loss for loss in losses)
    bounded = [-math.inf, *ordered, math.inf]
    return TuningCurve(
        list(range(1, len(losses) + 1)),
        *([bounded[rank] for rank in ranks] for ranks in _ranks(len(losses))),
    )


def separate_at(first: TuningCurve, second: TuningCurve) -> list[int]:
    """Return the numbers of trials after which the bands of two arms don't overlap."""
    pairs = zip(first.trials, zip(first.low, first.high), zip(second.low, second.high))
    return [k for k, (low, high), (below, above) in pairs if high < below or above < low]


@functools.cache
def _ranks(trials: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Return which of the ordered trials is the median of the best of k, and which are the ends of its band.

    Trials count from 1. Rank 0 stands for no lower bound, and one more than `trials` for no upper bound.
    """
    from opda.nonparametric import EmpiricalDistribution  # takes half a second to import

    ranks, effort = np.arange(1, trials + 1), np.arange(1, trials + 1)
    lower, point, upper = EmpiricalDistribution.confidence_bands(
        ranks.astype(float),
        CONFIDENCE,
        a=0.0,
        b=trials + 1.0,
        generator=np.random.default_rng(0),  # the band's critical value is simulated
        method="ld_equal_tailed",
        n_jobs=1,
    )
    # the upper bound of the distribution function is the lower bound of its quantiles
    curves = [bound.quantile_tuning_curve(effort, minimize=True) for bound in (point, upper, lower)]
    return tuple([int(rank) for rank in curve] for curve in curves)
