"""The exact p-value of one sign-flip test of up to 32 pairs, however small it is.

`minllm.study.boundaries.SignFlips` tests all looks together, with at most 2^15 sign flips, so its p-values can't be
much below 1e-4. What is tested among many ideas may have to be far below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minllm.study.boundaries import ROUNDING, Floats, sizes

EXACT_PAIRS = 32


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the fraction of sign flips whose sum is at least as far from 0; for more than 32 pairs an upper bound.

    Infinite differences make it a test of ranks. The flips of each half of the pairs are enumerated, and counted
    together by sorting the sums of one half. The bound is Hoeffding's, which holds for any sizes.
    """
    seen = np.array(differences, dtype=float)
    weights = sizes(seen)
    if not weights.sum():
        return 1.0
    weights /= weights.sum()
    far = abs(float(np.sign(seen) @ weights)) - 0.5 * 10**-ROUNDING
    if len(seen) > EXACT_PAIRS:
        return min(1.0, 2 * math.exp(-(max(0.0, far) ** 2) / (2 * float(weights @ weights))))
    one, other = _sums(weights[::2]), np.sort(_sums(weights[1::2]))
    at_least = len(other) - np.searchsorted(other, far - one)
    return min(1.0, 2 * int(at_least.sum()) / 2 ** len(seen))  # as many are as far on the other side


def _sums(weights: Floats) -> Floats:
    """Return the sums under all sign flips."""
    sums = np.zeros(1)
    for weight in weights:
        sums = np.concatenate([sums + weight, sums - weight])
    return sums
