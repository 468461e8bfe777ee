"""Which arm is less stable: by the spread over seeds, spikes of the training loss, and runs that diverged.

Each has a test of its own, and Bonferroni's correction keeps the probability of any false claim over the three below
5 %.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minllm.estimates import LEVEL
from minllm.study.divergence import mcnemar
from minllm.study.sample import spread
from minllm.study.selection import TrainedRun

LEAST_PAIRS = 4  # for the correlation of sums and differences
EXACT_PAIRS = 7  # up to here all orders are enumerated, at most 5,040
DRAWS = 10_000
WINDOW = 5  # lines of metrics
LEAST_LINES = 3 * WINDOW
FAR = 6.0  # robust standard deviations
NOTICED = 0.02  # of the loss: smaller spikes don't count, however smooth the curve is
NORMAL = 1.4826  # the standard deviation of a normal variable over its median absolute deviation


@dataclass(frozen=True)
class Indicator:
    """An indicator of instability in both arms, and the probability of such a difference by chance alone.

    arm, baseline: the amounts; None if unknown
    p: two-sided; None if it can't be tested
    leans: 1 if by the test the arm has more of it, -1 if the baseline has, else 0
    """

    arm: float | None
    baseline: float | None
    p: float | None
    leans: int = 0


@dataclass(frozen=True)
class Stability:
    """How stable an arm and its baseline are.

    spread: the standard deviation of the bits per byte over the seeds of the pairs. The test is McCulloch's (1987) for
        paired samples: Spearman's correlation of the sums and the differences of the pairs, which is 0 if the
        variances are equal.
    spikes: of the training loss, per run, and a sign test over the pairs; see `count_spikes`
    divergence: the fraction of an arm's runs that diverged, and Fisher's exact test
    less_stable: which of the two is less stable by the corrected tests; None if neither is, or if each is
        by another test
    p: the smallest corrected p-value of the three
    """

    spread: Indicator
    spikes: Indicator
    divergence: Indicator
    less_stable: str | None
    p: float


def stability(
    names: tuple[str, str],
    values: tuple[Sequence[float], Sequence[float]],
    runs: tuple[Sequence[TrainedRun], Sequence[TrainedRun]],
    diverged: tuple[int, int],
    finished: tuple[int, int],
) -> Stability:
    """Compare the stability of an arm (first) and the baseline (second).

    Args:
        names: of the two.
        values: bits per byte, in pairs.
        runs: the same pairs.
        diverged: how many runs of each diverged.
        finished: how many runs of each were completed.
    """
    indicators = (
        _spread(*values),
        _spikes(*([count_spikes(run.train_losses) for run in own] for own in runs)),
        _divergence(diverged, finished),
    )
    corrected = [
        1.0 if indicator.p is None else min(1.0, len(indicators) * indicator.p) for indicator in indicators
    ]
    leaning = {indicator.leans for indicator, p in zip(indicators, corrected) if p <= LEVEL} - {0}
    less = names[0] if leaning == {1} else names[1] if leaning == {-1} else None
    return Stability(*indicators, less, min(corrected))


def _spread(arm: Sequence[float], baseline: Sequence[float]) -> Indicator:
    if len(arm) < 2:
        return Indicator(None, None, None)
    deviations = spread(arm)[1], spread(baseline)[1]
    sums, differences = np.add(arm, baseline), np.subtract(arm, baseline)
    if len(arm) < LEAST_PAIRS or not np.ptp(sums) or not np.ptp(differences):
        return Indicator(*deviations, None)
    p, direction = rank_test(sums, differences)
    return Indicator(*deviations, p, direction)


def rank_test(first: np.ndarray, second: np.ndarray) -> tuple[float, int]:
    """Return the p-value of Spearman's correlation, and its sign.

    It is exact for up to EXACT_PAIRS pairs, and from DRAWS random orders beyond. That of `scipy.stats.spearmanr` is
    asymptotic, and 0 for a perfect correlation of a few pairs.
    """
    from scipy.stats import rankdata  # takes half a second to import

    n = len(first)
    ranks, others = (rankdata(values) - (n + 1) / 2 for values in (first, second))
    observed = abs(ranks @ others) - 1e-9
    reached = np.count_nonzero(np.abs(ranks[_orders(n)] @ others) >= observed)
    p = reached / math.factorial(n) if n <= EXACT_PAIRS else (1 + reached) / (1 + DRAWS)
    return p, _sign(ranks @ others)


@functools.lru_cache(64)
def _orders(n: int) -> np.ndarray:
    """Return all orders of n values, or DRAWS random ones if there are too many."""
    if n <= EXACT_PAIRS:
        return np.array([*itertools.permutations(range(n))])
    return np.random.default_rng(n).permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)


def _spikes(arm: Sequence[int | None], baseline: Sequence[int | None]) -> Indicator:
    known = [(own, other) for own, other in zip(arm, baseline) if own is not None and other is not None]
    if not known:
        return Indicator(None, None, None)
    more, fewer = sum(own > other for own, other in known), sum(own < other for own, other in known)
    p = mcnemar(more, fewer)  # as a test, the sign test is the same
    return Indicator(*(float(np.mean(counts)) for counts in zip(*known)), p, _sign(more - fewer))


def _divergence(diverged: tuple[int, int], finished: tuple[int, int]) -> Indicator:
    from scipy import stats  # takes half a second to import

    shares = [lost / max(1, lost + completed) for lost, completed in zip(diverged, finished)]
    p = float(stats.fisher_exact([diverged, finished]).pvalue) if any(diverged) else 1.0
    return Indicator(*shares, p, _sign(shares[0] - shares[1]))


def _sign(value: float) -> int:
    return int(value > 0) - int(value < 0)


@functools.lru_cache(4096)  # a run may be in many contests
def count_spikes(losses: tuple[float, ...]) -> int | None:
    """Return the number of spikes in a series of training losses; None if it is too short.

    A value is in a spike if it lies above the median of the WINDOW values before it by more than FAR robust standard
    deviations of such distances (from their median absolute deviation), and by more than NOTICED of that median.
    Neighbouring values form one spike.
    """
    if len(losses) < LEAST_LINES:
        return None
    before = np.median(np.lib.stride_tricks.sliding_window_view(np.array(losses)[:-1], WINDOW), axis=1)
    above = np.array(losses)[WINDOW:] - before
    centre = np.median(above)
    limit = np.maximum(centre + FAR * NORMAL * np.median(np.abs(above - centre)), NOTICED * np.abs(before))
    is_far = above > limit
    return int(is_far[0]) + int((is_far[1:] & ~is_far[:-1]).sum())
