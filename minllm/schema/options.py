"""Types for the options that a YAML file may set: `lr: Positive` says more than `lr: float`.

A class's constructor is its schema: `minllm.config.compose.validate` reads these annotations and rejects
`optim.lr=-1` before anything is instantiated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from minllm.files.names import LONGEST

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """The range of numbers that an option takes, and its description for messages."""

    description: str
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
    """The text that an option takes, and its description for messages. The default is any text that isn't blank."""

    description: str
    pattern: str = r"(?s).*\S.*"

    def __contains__(self, text: str) -> bool:
        return re.fullmatch(self.pattern, text) is not None


@dataclass(frozen=True)
class In:
    """The section that a task's option belongs to: `show: Annotated[str, In("tokenizer")]` is tokenizer.show."""

    section: str


@dataclass(frozen=True)
class Kind:
    """The kind of code that a section with a `_target_` requires: `pruner: Annotated[Node, Kind("a pruner", (…,))]`.

    description: its name in messages, with an article
    bases: its base classes, or their dotted paths if importing them takes time
    calls: the number of positional arguments; None if unknown
    """

    description: str
    bases: tuple[str | type, ...]
    calls: int | None = 0


def factory(function: Function) -> Function:
    """Decorate a function that a `_target_` may name; its annotated return type is what it creates."""
    function.is_minllm_factory = True  # type: ignore[attr-defined]
    return function


def reads(*keys: str) -> Callable[[Function], Function]:
    """Declare which sections or single keys of a configuration a task reads besides its own options.

    Overrides of anything else are rejected because they would do nothing. An undecorated task may read everything.
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
    str,
    Matching(
        f"a folder's name: letters, digits, spaces, _ + - and ., up to {LONGEST}",
        rf"\w[\w +.-]{{0,{LONGEST - 1}}}",
    ),
]
Place = Annotated[str, Matching("the path of a file or folder")]
RunPlace = Annotated[str, Matching("a run's folder or latest")]
Share = Annotated[float, Range("a number above 0 and below 1", 0, low_open=True, high=1, high_open=True)]
