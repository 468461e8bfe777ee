"""The learning rate at every size of a ladder, from the rates that were tuned at its lower sizes.

    log2 rate = level + slope · (log2 size − their mean)

The optimum at a size is the minimum of a quadratic, and its standard error follows from how far the tuning runs are
from that quadratic. Two or three optima determine a slope badly, and the largest size is far away from them, so the
slope is combined with the one that is usual, each weighted by its precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minllm.page import units
from minllm.study.tuning import RATE, Tuning

WINDOW = 2
"""How many rates on either side of the nearest one the quadratic is fitted to."""
USUAL, SPREAD = -0.25, 0.25
"""The slope that is usual, and its standard deviation: between a constant rate and 1 / width (2203.03466), about
1 / √parameters."""
TRANSFERRED, TRANSFERRED_SPREAD = 0.0, 0.05
"""The same where `model.transfer` covers what grows from rung to rung: a rate that is best at one size is at others."""
LEAST_ERROR = 0.15
"""The smallest standard error of an optimum in log2: the loss isn't exactly quadratic, and few runs agree by chance."""


@dataclass(frozen=True)
class Optimum:
    """The best learning rate at a size, with the standard error of its log2."""

    size: float
    rate: float
    error: float


@dataclass(frozen=True)
class RateLine:
    """The learning rate as a power of the size.

    optima: the rates that were tuned
    centre: the mean log2 size of the optima, where log2 of the rate is `level`
    slope: of log2 rate against log2 size; 0 with a single optimum
    estimated, error: the slope of the optima alone, and its standard error; NaN with a single optimum
    usual, spread: the usual slope that it was combined with, and its standard deviation
    """

    optima: Sequence[Optimum]
    centre: float
    level: float
    slope: float
    estimated: float
    error: float
    usual: float
    spread: float

    def at(self, size: float) -> float:
        """Return the rate at a size, rounded to three digits."""
        return float(f"{2 ** (self.level + self.slope * (math.log2(size) - self.centre)):.3g}")

    @property
    def sentence(self) -> str:
        """What was chosen and why."""
        tuned = ", ".join(f"{units.rate(best.rate)} at {units.count(best.size)}" for best in self.optima)
        if len(self.optima) == 1:
            return f"the rate that was tuned at the lowest size ({tuned}), for every size"
        return (
            f"a straight line through the tuned rates ({tuned}), with slope {self.slope:+.2f} in logarithms: their own,"
            f" {self.estimated:+.2f} ± {self.error:.2f}, combined with the usual {self.usual:+.2f} ± {self.spread:.2f}"
        )


def optimum_of(size: float, tuning: Tuning) -> Optimum:
    """Return the best rate of an arm at a size, with the standard error of its log2."""
    rate = tuning.chosen[RATE]
    counted = [tried for tried in tuning.tried if tried.succeeded]
    places = np.log2([tried.values[RATE] / rate for tried in counted])
    best = int(np.argmin(np.abs(places))) if counted else 0
    window = slice(max(0, best - WINDOW), best + WINDOW + 1)
    runs = [
        (place, loss, seed)
        for place, tried in zip(places[window], counted[window])
        for seed, loss in tried.losses.items()
    ]
    error = _error_of_minimum(runs)
    if error is None:
        # the optimum is between the neighbours of the best rate: as much is known as of a uniform variable
        step = float(np.median(np.diff(places))) if len(places) > 1 else 1.0
        return Optimum(size, rate, step / math.sqrt(3))
    return Optimum(size, rate, max(error, LEAST_ERROR))


def line_through(optima: Sequence[Optimum], transferred: bool = False) -> RateLine:
    """Fit the line by weighted least squares, and combine its slope with the usual one.

    Args:
        transferred: whether `model.transfer` covers what grows from rung to rung.
    """
    usual, spread = (TRANSFERRED, TRANSFERRED_SPREAD) if transferred else (USUAL, SPREAD)
    x = np.log2([best.size for best in optima])
    y = np.log2([best.rate for best in optima])
    weights = np.array([best.error**-2 for best in optima])
    centre = float(weights @ x / weights.sum())
    level = float(weights @ y / weights.sum())
    if len(optima) == 1:
        return RateLine(optima, centre, level, 0.0, math.nan, math.nan, usual, spread)
    information = float(weights @ (x - centre) ** 2)
    slope = float(weights @ ((x - centre) * (y - level))) / information
    # optima that scatter about the line by more than their errors are less certain than these say (Birge)
    scatter = weights @ (y - level - slope * (x - centre)) ** 2 / max(1, len(optima) - 2)
    error = math.sqrt(max(1.0, float(scatter)) / information)
    precision, certainty = error**-2, spread**-2
    combined = (precision * slope + certainty * usual) / (precision + certainty)
    return RateLine(optima, centre, level, combined, slope, error, usual, spread)


def _error_of_minimum(runs: Sequence[tuple[float, float, int]]) -> float | None:
    """Return the standard error of the minimum of a quadratic through losses.

    Seeds shift all losses alike. None if there is no minimum or no freedom left.

    Args:
        runs: place, loss and seed of each.
    """
    seeds = sorted({seed for *_, seed in runs})
    x, y = np.array([[place, loss] for place, loss, _ in runs]).T if runs else (np.empty(0), np.empty(0))
    shifts = np.array([[float(seed == other) for other in seeds] for *_, seed in runs]).reshape(len(runs), -1)
    design = np.column_stack([x**2, x, shifts])
    freedom = len(runs) - design.shape[1]
    if freedom < 1 or len(set(x.tolist())) < 3:
        return None
    (bend, slope, *_), *_ = np.linalg.lstsq(design, y, rcond=None)
    if bend <= 0:
        return None
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    covariance = np.linalg.inv(design.T @ design)[:2, :2] * float(rest @ rest) / freedom
    gradient = np.array([slope / (2 * bend**2), -1 / (2 * bend)])
    return math.sqrt(float(gradient @ covariance @ gradient))
