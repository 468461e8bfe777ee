"""The floor: the entropy of a corpus with known probabilities, which no valid model can beat.

The floor is the surprisal of the validation texts themselves, not its expectation. A model that has not seen them may
still be lucky: by Markov's inequality, it is at least k bits below the floor over the whole set with probability at
most 2^-k. So LUCK bits are allowed, which has a probability of one in a thousand, plus ROUNDING for sums in single
precision. A model further below has seen the tokens that it predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LUCK = 10.0
"""Bits, over the whole validation set."""
ROUNDING = 1e-5
"""Bits per byte."""
UNKNOWN_SIZE = 1e-4
"""Bits per byte allowed if the size of the validation set isn't known."""


def above_floor(val_bpb: float, floor_bpb: float | None, n_bytes: int) -> dict[str, Any]:
    """Return how far `val_bpb` is above the corpus entropy, and an error if it's below; {} if the entropy isn't known.

    Args:
        n_bytes: the size of the validation set in bytes.
    """
    if floor_bpb is None:
        return {}
    metrics = {"floor_bpb": floor_bpb, "bpb_above_floor": val_bpb - floor_bpb, "validation_bytes": n_bytes}
    error = below_floor(metrics)
    return {**metrics, "below_floor": error} if error else metrics


def below_floor(metrics: Mapping[str, Any]) -> str | None:
    """Return an error if a run's metrics are below the floor; None if they aren't, or the floor isn't known."""
    above, n_bytes = metrics.get("bpb_above_floor"), metrics.get("validation_bytes")
    if not isinstance(above, (int, float)):
        return None
    allowed = ROUNDING + LUCK / n_bytes if n_bytes else UNKNOWN_SIZE
    if above >= -allowed:
        return None
    return (
        f"ERROR: {-above:.4f} BITS PER BYTE BELOW THE CORPUS FLOOR, WHICH IS IMPOSSIBLE FOR A MODEL THAT PREDICTS. IT"
        " LOOKS AHEAD, OR WAS TRAINED ON THE VALIDATION TEXT. THIS LOSS IS MEANINGLESS."
    )
