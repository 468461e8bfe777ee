"""What a run writes: from nothing, and after given beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from minllm.data.source import Source
from minllm.tokenizer import Tokenizer

Origin = Literal["nothing", "beginning"]


@dataclass(frozen=True)
class Sample:
    """A text that a model has written.

    beginning: the text that it was given; empty if it began from nothing
    text: what it wrote after that
    group: samples with the same number are resampled together: those of one beginning; each text from nothing is
        a group of its own
    """

    beginning: str
    text: str
    group: int

    @property
    def whole(self) -> str:
        return self.beginning + self.text

    @property
    def origin(self) -> Origin:
        return "beginning" if self.beginning else "nothing"


@dataclass(frozen=True)
class Written:
    """What one run has written.

    name: of the run, or of its arm and seed, in tables
    samples: grouped by beginning; runs that are compared have the same beginnings in the same order
    source: the corpus that the run was trained on
    tokenizer: of the run
    """

    name: str
    samples: Sequence[Sample]
    source: Source
    tokenizer: Tokenizer
