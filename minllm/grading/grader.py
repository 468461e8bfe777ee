"""The base class of `grader:`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from minllm.data.source import Source
from minllm.grading.grades import Calibration, Duel, Grades, Measure
from minllm.grading.samples import Written
from minllm.schema.kinds import SECTION_KINDS
from minllm.schema.options import Count, Natural, Positive, Share


@dataclass(frozen=True, kw_only=True)
class Grader:
    """Grades what a model writes. A subclass adds `measures`, `grade`, and its own options as fields.

    stories: how many texts a model writes from nothing
    beginnings: how many beginnings it continues
    samples: how many times it continues each
    temperature: of its samples; 1 is the distribution that it has learnt
    max_new_tokens: of each sample; null means as many as the longest validation text has
    seed: of the samples
    margin: the difference that doesn't matter, as a fraction of a measure's span or of the baseline's value; choose it
        before you look
    """

    stories: Natural = 100
    beginnings: Natural = 50
    samples: Count = 2
    temperature: Positive = 1.0
    max_new_tokens: Count | None = None
    seed: Natural = 0
    margin: Share = 0.02

    measures: ClassVar[tuple[Measure, ...]] = ()
    """What it measures, in the order in which it is shown."""

    def check(self, source: Source) -> None:
        """Raise `UserError` before anything is sampled if texts of this source can't be graded."""

    def grade(self, written: Written) -> Grades:
        """Return the grades of a run's samples, one value per measure and sample.

        Raises:
            UserError: they can't be graded, for example because the budget of a judge is used up.
        """
        raise NotImplementedError

    def calibrate(self, written: Sequence[Written]) -> Calibration | None:
        """Test the grader itself, before it grades these samples; None if it needs no test or none was requested."""
        return None

    def compare(self, arm: Written, baseline: Written) -> Duel | None:
        """Compare two runs' samples of the same beginnings pairwise; None if the grader doesn't."""
        return None

    def settings(self) -> dict[str, Any]:
        """Return what a report says about how the texts were graded; no secrets."""
        return {}


GraderOption = Annotated[Callable[[], Grader], SECTION_KINDS["grader"]]
"""An option that is a `grader:` section."""
