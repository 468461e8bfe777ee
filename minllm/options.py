"""Types for the options that a YAML file may set: `lr: Positive` says more than `lr: float`.

A class's constructor is its schema: `minllm.config.validate` reads these annotations and tells the user, before
anything is built, that `optim.lr=-1` can't be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


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


@dataclass(frozen=True)
class Kind:
    """What may stand in a section with a `_target_`: `pruner: Annotated[Node, Kind("a pruner", (…,))]`.

    words: what it is called in a message, with its article
    bases: its base classes, or their dotted paths where importing them takes time
    calls: how many arguments it is given by position; None where that is not known
    """

    words: str
    bases: tuple[str | type, ...]
    calls: int | None = 0


def factory(function: Function) -> Function:
    """Declare that a function makes an option, so that a `_target_` may name it; its annotation says what it makes."""
    function.is_minllm_factory = True  # type: ignore[attr-defined]
    return function


def reads(*keys: str) -> Callable[[Function], Function]:
    """Declare what a task reads of a configuration besides its own options: sections, or single keys of one.

    Whatever else is typed is refused, because it would do nothing. A task that declares nothing may read everything.
    """

    def declare(task: Function) -> Function:
        task.reads = keys  # type: ignore[attr-defined]
        return task

    return declare


def is_factory(function: Any) -> bool:
    return getattr(function, "is_minllm_factory", False) is True


Count = Annotated[int, Range("a whole number of 1 or more", 1)]
Natural = Annotated[int, Range("a whole number of 0 or more", 0)]
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
Share = Annotated[float, Range("a number above 0 and below 1", 0, low_open=True, high=1, high_open=True)]
