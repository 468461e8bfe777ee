"""A prediction held to account: the difference at one rung above the ladder, predicted before it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minllm.estimates import Estimate
from minllm.study.intervals import mean_of
from minllm.study.scaling.answer import Prediction


@dataclass(frozen=True)
class Check:
    """A prediction, and what was measured.

    prediction: made before the first run at this size, for the number of pairs that were to be trained
    differences: the arm's bits per byte minus the baseline's, of each pair
    problem: why it can't be scored, as a sentence; None if it can
    """

    prediction: Prediction
    differences: Sequence[float]
    problem: str | None = None

    @property
    def measured(self) -> Estimate:
        """The mean over the pairs, with Student's interval."""
        return mean_of(self.differences)

    @property
    def is_inside(self) -> bool | None:
        """Whether the measured mean is inside the prediction interval; None if it can't be scored."""
        if self.problem is not None or not self.differences:
            return None
        low, high = self.prediction.difference.interval
        return low <= self.measured.value <= high
