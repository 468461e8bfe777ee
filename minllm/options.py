"""Types for the options that a YAML file may set: `lr: Positive` says more than `lr: float`.

A class's constructor is its schema: `minllm.config.validate` reads these annotations and tells the user, before
anything is built, that `optim.lr=-1` can't be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers that an option may take, and how to say so."""

    words: str
    low: float
    low_open: bool = False
    high: float = float("inf")
    high_open: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.low_open else number >= self.low
        below = number < self.high if self.high_open else number <= self.high
        return above and below and math.isfinite(number)


@dataclass(frozen=True)
class In:
    """Where a task's option stands if not at the root: `show: Annotated[str, In("tokenizer")]` is tokenizer.show."""

    section: str


Count = Annotated[int, Range("a whole number of 1 or more", 1)]
Natural = Annotated[int, Range("a whole number of 0 or more", 0)]
Positive = Annotated[float, Range("a number above 0", 0, low_open=True)]
NonNegative = Annotated[float, Range("a number of 0 or more", 0)]
BelowOne = Annotated[float, Range("a number from 0 to below 1", 0, high=1, high_open=True)]
Fraction = Annotated[float, Range("a number from 0 to 1", 0, high=1)]
Share = Annotated[float, Range("a number above 0 and below 1", 0, low_open=True, high=1, high_open=True)]
