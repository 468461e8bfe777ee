"""Types for the options that a YAML file may set: `lr: Positive` says more than `lr: float`.

A class's constructor is its schema: `minllm.config.validate` reads these annotations and tells the user, before
anything is built, that `optim.lr=-1` can't be.
"""

from __future__ import annotations

import math
import re
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
class Matching:
    """The texts that an option may take, and how to say so. By default that is text with anything in it at all."""

    words: str
    pattern: str = r"(?s).*\S.*"

    def __contains__(self, text: str) -> bool:
        return re.fullmatch(self.pattern, text) is not None


@dataclass(frozen=True)
class In:
    """Where a task's option stands if not at the root: `show: Annotated[str, In("tokenizer")]` is tokenizer.show."""

    section: str


LARGEST = 2**63 - 1  # of whole numbers in torch and numpy

Count = Annotated[int, Range("a whole number of 1 or more", 1, high=LARGEST)]
Natural = Annotated[int, Range("a whole number of 0 or more", 0, high=LARGEST)]
Positive = Annotated[float, Range("a number above 0", 0, low_open=True)]
NonNegative = Annotated[float, Range("a number of 0 or more", 0)]
BelowOne = Annotated[float, Range("a number from 0 to below 1", 0, high=1, high_open=True)]
Fraction = Annotated[float, Range("a number from 0 to 1", 0, high=1)]
Name = Annotated[str, Matching("text that isn't empty")]
FolderName = Annotated[
    str, Matching("a folder's name: letters, digits, spaces, _ + - and ., up to 100", r"\w[\w +.-]{0,99}")
]
Place = Annotated[str, Matching("the path of a file or folder")]
RunPlace = Annotated[str, Matching("a run's folder or latest")]
