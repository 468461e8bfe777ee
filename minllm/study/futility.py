"""Futility: whether a planned look is likely enough to settle a contest for more pairs to be worth training.

Stopping for futility makes no claim, and the boundaries don't count on it, so it can only lower the error rates.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from scipy.special import stdtrit

from minllm.study.boundaries import Floats, skewness, statistic

FUTILE = 0.14
"""A contest is given up if the chance that a planned look settles it is below this."""

NOISE = 1e-9  # relative to the values, anything smaller is rounding error

FUTURES = 200
"""Possible continuations from which that chance is estimated."""


def chance_to_settle(
    seen: Floats,
    later: Sequence[int],
    limits: Sequence[float],
    equivalence_limits: Sequence[float],
    margin: float | Floats,
    random: np.random.Generator,
    sides: Collection[int] = (1, -1),
    equivalence: bool = True,
) -> Floats:
    """Return the predictive probability that a later look proves a difference or equivalence.

    The mean and the variance are drawn from their posterior given the pairs so far (normal differences, and the usual
    prior 1/σ²), further pairs from the normal distribution that they describe. The sign-flip test, which can only
    lower the chance, is left out.

    Args:
        seen: differences, the pairs in the last dimension; several studies may be judged at once.
        later: the numbers of pairs of the looks to come.
        limits, equivalence_limits: the p-values that each of them needs, two-sided and one-sided.
        margin: the largest difference that doesn't matter.
        sides, equivalence: the signs of the differences that can be proved, and whether equivalence can.
    """
    pairs = seen.shape[-1]
    shape = (*seen.shape[:-1], FUTURES)
    least = NOISE * np.maximum(np.abs(seen).max(-1), margin)  # a standard deviation that can be divided by
    mean, sd = seen.mean(-1), np.maximum(seen.std(-1, ddof=1), least)
    sigma = sd[..., None] * np.sqrt((pairs - 1) / random.chisquare(pairs - 1, shape))
    true = mean[..., None] + sigma / np.sqrt(pairs) * random.standard_normal(shape)
    centred = seen - mean[..., None]
    sums = [np.broadcast_to((centred**power).sum(-1)[..., None], shape).copy() for power in (1, 2, 3)]
    settled, done = np.zeros(shape, bool), pairs
    for look, limit, equivalence_limit in zip(later, limits, equivalence_limits):
        for _ in range(look - done):
            drawn = true - mean[..., None] + sigma * random.standard_normal(shape)
            for power, total in enumerate(sums, 1):
                total += drawn**power
        done = look
        first, second, third = (total / look for total in sums)
        variance = np.maximum(second - first**2, least[..., None] ** 2)
        skew = skewness(look, variance, third - 3 * first * second + 2 * first**3)
        at, spread = first + mean[..., None], np.sqrt(variance * look / (look - 1))
        t, least_t = statistic(look, at, spread, skew), stdtrit(look - 1, 1 - limit / 2)
        for side in sides:
            settled |= side * t >= least_t
        if not equivalence:
            continue
        needed, widths = stdtrit(look - 1, 1 - equivalence_limit), np.asarray(margin)[..., None]
        settled |= (statistic(look, at, spread, skew, -widths) >= needed) & (
            statistic(look, at, spread, skew, widths) <= -needed
        )
    return settled.mean(-1)


def chance_to_settle_ranks(
    seen: Floats, last: int, level: float, wanted: Sequence[int], random: np.random.Generator
) -> float:
    """Return the probability that the signed ranks of `last` pairs reject, in a wanted direction (1 or −1).

    Some differences are infinite, so no distribution is assumed: further pairs are drawn from those so far, each of
    which becomes likelier with every draw (Pólya's urn).
    """
    from scipy.stats import rankdata  # takes half a second to import

    urns = np.tile(seen, (FUTURES, 1))
    for pairs in range(len(seen), last):
        picked = urns[np.arange(FUTURES), random.integers(pairs, size=FUTURES)]
        urns = np.column_stack([urns, picked])
    ranks = np.where(urns == 0, 0.0, rankdata(np.abs(urns), axis=1) - (urns == 0).sum(1, keepdims=True))
    total = (np.sign(urns) * ranks).sum(1) / np.maximum(np.sqrt((ranks**2).sum(1)), 1e-300)
    rejected = np.abs(total) >= -stdtrit(np.inf, level / 2)
    return float((rejected & np.isin(np.sign(total), wanted)).mean())
