"""The loss of each arm at each learning rate, and how much the rate matters.

*Sensitivity* is the learning-rate sensitivity of Wortsman et al. (2309.14322): the mean over the rates of
min(loss, loss at initialisation), minus the best loss. A run that diverged counts as the loss at initialisation.

*Shift* is how far the best rate moves from the smallest to the largest size, in octaves: |log2| of their ratio. It is
what µP is meant to make small (2203.03466).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from minllm.estimates import Estimate
from minllm.study.arms import Arm
from minllm.study.contest import Contest
from minllm.study.intervals import mean_of
from minllm.study.statistics import verdicts

Measure = Literal["sensitivity", "shift"]
UNITS: Mapping[Measure, str] = {"sensitivity": "bits per byte", "shift": "octaves"}
MARGINS: Mapping[Measure, float] = {"sensitivity": 0.02, "shift": 0.5}
"""The differences that don't matter, unless the protocol says otherwise."""
LEAST_RATES = 3


@dataclass(frozen=True)
class Curve:
    """The runs of an arm with a seed at a size.

    losses: bits per byte by learning rate, in increasing order of the rate; None where training diverged
    best: the best rate, between rates where a quadratic has its minimum; None if no rate counts
    at_edge: whether it is the lowest or the highest rate
    start: bits per byte at initialisation; None if it wasn't measured
    """

    seed: int
    losses: Mapping[float, float | None]
    best: float | None
    at_edge: bool = False
    start: float | None = None

    @property
    def capped(self) -> list[float | None]:
        """The losses, of which none is above that at initialisation where this is known."""
        ceiling = math.inf if self.start is None else self.start
        capped = [min(ceiling, math.inf if loss is None else loss) for loss in self.losses.values()]
        return [loss if math.isfinite(loss) else None for loss in capped]


def sensitivity(curve: Curve) -> float:
    """Return the learning-rate sensitivity of a curve whose start is known; infinite if no rate trains at all.

    Where no run ends below the loss at initialisation, all are alike, and the definition would call that insensitive.
    """
    losses = [loss for loss in curve.capped if loss is not None]
    if curve.start is None or min(losses) >= curve.start:
        return math.inf
    return math.fsum(losses) / len(losses) - min(losses)


def shift(smallest: Curve, largest: Curve) -> float:
    """Return the octaves between the best rates of two sizes; infinite if one of them has none."""
    if smallest.best is None or largest.best is None:
        return math.inf
    return abs(math.log2(largest.best / smallest.best))


@dataclass(frozen=True)
class RateStudy:
    """How the loss of each arm depends on the learning rate.

    arms: their names, the baseline first
    sizes: their names, the smallest first; a single "" if there is one size
    curves: by the names of arm and size, for each seed, in the order of the seeds
    seeds: how many were planned
    margin: a difference that doesn't matter, in the unit of the measure
    equal: what all arms have the same of, as words
    command: what repeats it
    """

    measure: Measure
    arms: Sequence[str]
    sizes: Sequence[str]
    curves: Mapping[tuple[str, str], Sequence[Curve]]
    seeds: int
    margin: float
    equal: str
    command: str

    @property
    def unit(self) -> str:
        return UNITS[self.measure]

    @property
    def pairs(self) -> int:
        """How many seeds, from the first, every arm has been trained with at every rate and size."""
        return min(map(len, self.curves.values()))

    def values(self, arm: str) -> list[float]:
        """Return the arm's value with each seed that every arm has."""
        curves = [self.curves[arm, size][: self.pairs] for size in self.sizes]
        if self.measure == "sensitivity":
            return [sensitivity(curve) for curve in curves[0]]
        return [shift(*ends) for ends in zip(curves[0], curves[-1])]

    def estimate(self, arm: str) -> Estimate | None:
        """Return the mean of an arm's values with its interval; None if there is none."""
        finite = [value for value in self.values(arm) if math.isfinite(value)]
        return mean_of(finite) if finite else None

    def at_edge(self, arm: str) -> int:
        """Return with how many seeds a best rate that the value depends on is the lowest or the highest tried."""
        ends = {self.sizes[0], self.sizes[-1]}
        return sum(
            any(curve.at_edge for curve in curves)
            for curves in zip(*(self.curves[arm, size][: self.pairs] for size in ends))
        )

    @functools.cached_property
    def contests(self) -> list[Contest]:
        """Each arm against the first, in pairs of values with the same seed."""
        baseline, *others = self.arms
        of_baseline = self.values(baseline)
        differences = [[own - other for own, other in zip(self.values(arm), of_baseline)] for arm in others]
        judged = verdicts(differences, margin=self.margin, looks=(self.seeds,), unit=self.unit)
        return [
            Contest(
                Arm(arm, {}),
                Arm(baseline, {}),
                {seed: value for seed, value in enumerate(own) if math.isfinite(value)},
                verdict,
                unit=self.unit,
            )
            for arm, own, verdict in zip(others, differences, judged)
        ]

    @property
    def is_complete(self) -> bool:
        return self.pairs >= self.seeds

    @property
    def is_answered(self) -> bool:
        return all(contest.is_answered for contest in self.contests)
