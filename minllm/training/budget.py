"""When a run ends, and its position on the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minllm.errors import UserError
from minllm.training.settings import Settings

PACE_STEPS = 5
"""Number of steps after which the pace of a run is known, and the length of one with a time budget is estimated."""

ENDLESS = 10**9
"""`total_steps` of a run whose length is not known yet."""


@dataclass
class Budget:
    """The budget of a run: `steps`, `seconds`, or whichever is used up first.

    The schedule gives the learning rate at `position` of `total_steps`. With a budget of steps, tokens or FLOPs, the
    position is the step. With a budget of minutes, the length is estimated once, from the pace of the first steps, and
    each later step advances the position by its share of the remaining time. So the position never moves back or jumps,
    however the pace changes, and reaches the end when the time is up. Until the pace is known, the run counts as
    endless, so that a warm-up without an explicit length begins like that of a long run.
    """

    steps: int | None
    seconds: float | None
    total_steps: int
    position: float = 0.0

    @classmethod
    def of(cls, settings: Settings, tokens_per_step: int, flops_per_token: float) -> Budget:
        limits = [
            settings.steps,
            settings.tokens and math.ceil(settings.tokens / tokens_per_step),
            settings.flops and math.ceil(settings.flops / (flops_per_token * tokens_per_step)),
        ]
        steps = min((limit for limit in limits if limit is not None), default=None)
        seconds = None if settings.minutes is None else settings.minutes * 60
        return cls(steps, seconds, ENDLESS if steps is None else steps)

    def spent(self, step: int, seconds: float) -> bool:
        """Whether a run that has taken `step` steps in `seconds` is over."""
        return (self.steps is not None and step >= self.steps) or (
            self.seconds is not None and seconds >= self.seconds
        )

    def passed(self, parts: int | None, before: Sequence[float] | None = None) -> int:
        """Return how many of `parts` equal parts of the run are complete; 0 if `parts` is None.

        Args:
            before: the position and total steps to use instead of the current ones.
        """
        position, total_steps = before or (self.position, self.total_steps)
        return int(position * (parts or 0) // total_steps)

    def advance(self, step: int, seconds: float, step_seconds: float) -> None:
        """Advance the position after step `step` (from 1), which took `step_seconds`; the run so far took `seconds`."""
        rest = self.total_steps - self.position
        paces = [] if self.steps is None else [rest / (self.steps - step + 1)]
        if self.seconds is not None and step > PACE_STEPS:
            paces.append(rest * step_seconds / (max(self.seconds - seconds, 0.0) + step_seconds))
        self.position += max(paces, default=1.0)
        if self.steps is None and step == PACE_STEPS:
            self.total_steps = max(step + 1, round(step * self.seconds / seconds))

    def used_up(self, step: int, seconds: float) -> UserError:
        """Return the error for resuming a finished run."""
        return UserError(
            f"This run has used up its budget: it took {step} steps in {seconds / 60:.1f} minutes. Increase it,"
            " for example train.steps=" + str(2 * step) + "."
        )

    def go_on(self, step: int, seconds: float, position: float, total_steps: int | None) -> None:
        """Restore the position of a resumed run that took `step` steps in `seconds`; its budget may have changed."""
        total_steps = ENDLESS if total_steps is None else total_steps
        if (
            self.steps is None
            and position > total_steps - 1
            and seconds > 0
            and not self.spent(step, seconds)
        ):
            # its time was up and has been extended: estimate the length again from the pace so far
            position, total_steps = step, round(step * self.seconds / seconds)
        self.position = position
        self.total_steps = total_steps if self.steps is None else self.steps

    def seconds_left(self, step: int, seconds: float, step_seconds: float) -> float:
        """Estimate how many seconds the rest of the run takes if each step takes `step_seconds`."""
        by_steps = math.inf if self.steps is None else (self.steps - step) * step_seconds
        by_time = math.inf if self.seconds is None else self.seconds - seconds
        return max(0.0, min(by_steps, by_time))
