"""Learning rate schedules: pure functions of the step, `lr(step, total_steps)`.

The first step is step 0. Steps may be fractional: with a time budget, a run advances along its schedule in proportion
to the time that has passed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minllm.errors import UserError
from minllm.schema.options import Natural, NonNegative, Positive

LONGEST_WARMUP = 100
"""Maximum number of warm-up steps if `warmup_steps` is null."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A linear warm-up, followed by the schedule of the subclass.

    lr_max: the maximum learning rate (optim.lr by default)
    warmup_steps: number of warm-up steps; null: a tenth of the run, at most 100
    """

    lr_max: Positive
    warmup_steps: Natural | None

    def lr(self, step: float, total_steps: int) -> float:
        """Return the learning rate at `step`, counted from 0, in a run of `total_steps`."""
        warmup = self.warmup(total_steps)
        if step < warmup:
            return self.lr_max * (step + 1) / (warmup + 1)
        return self.after_warmup(step - warmup, total_steps - warmup)

    def after_warmup(self, step: float, steps: int) -> float:
        """Return the learning rate `step` steps after the warm-up, out of the `steps` after it."""
        raise NotImplementedError

    def needed_steps(self, total_steps: int) -> int:
        """Return how many steps the parts with a fixed length take."""
        return self.warmup(total_steps)

    def check(self, total_steps: int) -> None:
        """Raise UserError if a run of `total_steps` is too short for this schedule."""
        if self.needed_steps(total_steps) > total_steps:
            raise UserError(
                f"The schedule's parts take {self.needed_steps(total_steps)} steps, but the run has only {total_steps}."
                " Train longer, or make schedule.warmup_steps and the schedule's other parts shorter."
            )

    def warmup(self, total_steps: int) -> int:
        """Return the number of warm-up steps in a run of `total_steps`."""
        return min(LONGEST_WARMUP, total_steps // 10) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Stays at `lr_max`."""

    def after_warmup(self, step: float, steps: int) -> float:
        return self.lr_max


@dataclass(frozen=True, kw_only=True)
class Falling(Schedule):
    """A schedule that decays after the warm-up.

    lr_min: the minimum learning rate; null: a tenth of `lr_max`
    """

    lr_min: NonNegative | None

    def __post_init__(self):
        if self.lr_min is not None and self.lr_min > self.lr_max:
            raise UserError(
                f"schedule.lr_min={self.lr_min:g} is above schedule.lr_max={self.lr_max:g}. Lower it, or use"
                " null for a tenth of lr_max."
            )

    def between(self, share: float) -> float:
        """Return the learning rate at `share` of the way from the minimum to the maximum."""
        low = self.lr_max / 10 if self.lr_min is None else self.lr_min
        return low + (self.lr_max - low) * share


@dataclass(frozen=True, kw_only=True)
class Annealing(Falling):
    """Decays from `lr_max` to `lr_min` in one or more cycles, and then stays there.

    restarts: how many times the rate is reset to `lr_max` (warm restarts, 1608.03983)
    t_mult: the length of each cycle relative to the previous one
    flat_steps: how many steps to stay at `lr_min` at the end
    """

    restarts: Natural
    t_mult: Positive
    flat_steps: Natural

    def fall(self, progress: float) -> float:
        """Return the decay factor, from 1 to 0, at `progress`, from 0 to 1, of a cycle."""
        raise NotImplementedError

    def after_warmup(self, step: float, steps: int) -> float:
        # the last step of the decay is the first at lr_min; without a flat part, that's the last step
        falling = max(1, steps - max(1, self.flat_steps))
        growth = [i * math.log(self.t_mult) for i in range(self.restarts + 1)]
        longest = max(growth)
        cycles = [
            math.exp(one - longest) for one in growth
        ]  # scaled so that the longest is 1, which avoids overflow
        place = min(step / falling, 1.0) * sum(cycles)
        for length in cycles[:-1]:
            if place < length:
                return self.between(self.fall(place / length))
            place -= length
        return self.between(self.fall(min(place / cycles[-1], 1.0)))

    def needed_steps(self, total_steps: int) -> int:
        return super().needed_steps(total_steps) + self.restarts + self.flat_steps


@dataclass(frozen=True, kw_only=True)
class Cosine(Annealing):
    """Decays along half a cosine (1608.03983)."""

    def fall(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class Linear(Annealing):
    """Decays linearly."""

    def fall(self, progress: float) -> float:
        return 1 - progress


@dataclass(frozen=True, kw_only=True)
class WSD(Falling):
    """Warm-up, stable, decay (2404.06395), a trapezoid: stays at `lr_max`, then decays linearly to `lr_min`.

    decay_steps: number of decay steps; null: a fifth of the steps after the warm-up
    """

    decay_steps: Natural | None

    def after_warmup(self, step: float, steps: int) -> float:
        decay = self._decay(steps)
        return self.between(min(1.0, max(0.0, (steps - 1 - step) / decay))) if decay else self.lr_max

    def needed_steps(self, total_steps: int) -> int:
        warmup = super().needed_steps(total_steps)
        return warmup + self._decay(total_steps - warmup)

    def _decay(self, steps: int) -> int:
        return steps // 5 if self.decay_steps is None else self.decay_steps
