"""Measures, their values for each sample, and everything that a grader says about the texts of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from minllm.grading.samples import Written

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Measure:
    """Something that is measured of each sample.

    name: its key in JSON, such as `grammar`
    title: its name in tables and figures
    unit: of its values: `share` (of 1), `out of 10`, `characters`, `bits per character`, `years`
    better: which values are better; a measure with `neither` is described, not judged
    span: the difference between the best and the worst possible value, which margins are fractions of; None if its
        values have no such limits: margins are then fractions of the baseline's value
    """

    name: str
    title: str
    unit: str
    better: Better
    span: float | None


@dataclass(frozen=True)
class Values:
    """The values of a measure, one pair of numbers for each sample. The mean is the ratio of their sums.

    amounts: of each sample, such as its grade, or how many facts it recalled
    counts: what they are shares of: 1 for a grade, how many facts it had to recall; 0 if the sample has no value
    """

    amounts: Sequence[float]
    counts: Sequence[float]

    def value(self, sample: int) -> float | None:
        """Return the value of one sample; None if it has none."""
        return self.amounts[sample] / self.counts[sample] if self.counts[sample] else None


@dataclass(frozen=True)
class Break:
    """Where a text leaves its language.

    offset: characters of the whole text, with its beginning, that are right
    expected: what could have come instead, in alphabetical order
    recalled: the role that the text got wrong, such as `hero`; None if the break is of another sort
    """

    offset: int
    expected: tuple[str, ...]
    recalled: str | None


@dataclass(frozen=True)
class Grades:
    """What a grader says about the samples of one run.

    written: the samples
    values: by measure, in the order in which they are shown; each has one entry per sample
    breaks: for each sample, where it breaks; None if it doesn't, or if the grader doesn't look for breaks
    remarks: for each sample, the grader's own words about it; empty if it has none
    facts: further results as JSON, such as recall by distance and the longest copied passage
    notes: sentences that a reader must know, such as how many answers are missing
    """

    written: Written
    values: Mapping[Measure, Values]
    breaks: Sequence[Break | None] = ()
    remarks: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Duel:
    """Two runs whose samples of the same beginnings a judge compared pairwise, blind, in both orders.

    names: of the two runs
    groups: of each pair of samples, the number by which they are resampled
    wins: for each pair of samples, the share that the first run won: a tie counts as one half, and both orders are
        averaged; None where an answer is missing
    ties: the share of answers that were ties; None without valid answers
    agreement: the share of pairs in which both orders gave the same winner; None if no pair has both answers
    first: the share of wins that went to the text that was shown first; 0.5 means no position bias, None that nothing
        was won
    first_interval: its 95 % interval by resampling groups; None if nothing was won
    notes: sentences that a reader must know
    """

    names: tuple[str, str]
    groups: Sequence[int]
    wins: Sequence[float | None]
    ties: float | None
    agreement: float | None
    first: float | None
    first_interval: tuple[float, float] | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Calibration:
    """Whether a judge can be believed: what it says about texts whose quality is known.

    is_passed: whether it passes
    rows: for each kind of text, the kind, the number of texts, and the mean of each measure; the table of the report
    columns: the headings of `rows`
    facts: the same as JSON, with rank correlations and shares of noticed faults
    sentences: the result, and what it means
    """

    is_passed: bool
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    facts: Mapping[str, Any]
    sentences: Sequence[str]
