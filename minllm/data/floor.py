"""The floor: the entropy of a corpus whose probabilities are known, which no honest model can be below.

A floor is the surprisal of the very validation texts that a model is measured on, and not an expected one. A model
that has learned nothing from them may still be lucky: by Markov's inequality it is k bits or more below, over the whole
set, with a probability of at most 2 to the power of -k. So LUCK bits are allowed, a chance of one in a thousand, and
ROUNDING for sums in single precision. What is further below knows what it predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LUCK = 10.0
"""Bits, over the whole validation set."""
ROUNDING = 1e-5
"""Bits a byte."""
UNKNOWN_SIZE = 1e-4
"""Bits a byte that are allowed where nobody knows how many bytes the validation set has."""


def above_floor(val_bpb: float, floor_bpb: float | None, n_bytes: int) -> dict[str, Any]:
    """Return how far a figure is above its corpus's entropy, and the error if it's below; nothing if that isn't known.

    Args:
        n_bytes: the size of the validation set.
    """
    if floor_bpb is None:
        return {}
    found = {"floor_bpb": floor_bpb, "bpb_above_floor": val_bpb - floor_bpb, "validation_bytes": n_bytes}
    error = below_floor(found)
    return {**found, "below_floor": error} if error else found


def below_floor(figures: Mapping[str, Any]) -> str | None:
    """Return the error that a run's figures are below the floor; None if they aren't, or it isn't known."""
    above, n_bytes = figures.get("bpb_above_floor"), figures.get("validation_bytes")
    if not isinstance(above, (int, float)):
        return None
    allowed = ROUNDING + LUCK / n_bytes if n_bytes else UNKNOWN_SIZE
    if above >= -allowed:
        return None
    return (
        f"ERROR: {-above:.4f} BITS A BYTE BELOW THE CORPUS'S FLOOR, WHICH IS IMPOSSIBLE FOR A MODEL THAT PREDICTS. IT"
        " LOOKS AHEAD, OR HAS LEARNED FROM THE VALIDATION TEXT. THIS FIGURE MEANS NOTHING."
    )
