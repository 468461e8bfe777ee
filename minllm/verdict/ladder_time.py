"""How long a ladder will take, from FLOPs.

A step takes a fixed time and a time in proportion to its FLOPs, and so does everything else in a run: starting it,
checking the model, evaluating it. Both lines go through two short runs of each arm, at the smallest and the largest
rung, which are trained first, as many at a time as later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minllm.errors import UserError
from minllm.page import units
from minllm.verdict.ladder_rungs import RungPlan, Training

EXTENSION = 2
"""How many rates beyond the planned ones an arm is expected to try."""
NEIGHBOURS = 3
"""How many rates are repeated with each further tuning seed."""


@dataclass(frozen=True)
class Timed:
    """A short run.

    flops_per_step: of its model
    step_seconds: mean time of a step
    other_seconds: everything else
    """

    flops_per_step: float
    step_seconds: float
    other_seconds: float


@dataclass(frozen=True)
class Pace:
    """How long the runs of an arm take, by two short ones."""

    small: Timed
    large: Timed

    def seconds(self, training: Training) -> float:
        """Return how long a run is expected to take."""
        span = self.large.flops_per_step - self.small.flops_per_step
        share = (training.flops_per_step - self.small.flops_per_step) / span if span > 0 else 1.0
        step = _between(self.small.step_seconds, self.large.step_seconds, share)
        other = _between(self.small.other_seconds, self.large.other_seconds, share)
        return step * (training.steps - training.begins_at) + other


def _between(small: float, large: float, share: float) -> float:
    """Interpolate; a larger model that was faster by chance counts as equally fast."""
    return large if large < small else small + share * (large - small)


@dataclass(frozen=True)
class Work:
    """Runs of one kind at one rung that are still to be trained.

    seconds: of all of them, one after the other
    longest: of one of them
    """

    rung: RungPlan
    kind: str
    runs: int
    seconds: float
    longest: float


def tuning_runs(planned: int, seeds: int, most: int) -> int:
    """Return how many tuning runs of an arm are expected at a rung, of at most `most`."""
    return min(most, planned + EXTENSION + NEIGHBOURS * (seeds - 1))


def work_of(rung: RungPlan, kind: str, runs: Mapping[str, int], paces: Mapping[str, Pace]) -> Work:
    """Return the work of so many runs of each arm at a rung."""
    each = {name: paces[name].seconds(rung.arms[name]) for name in runs}
    total = sum(number * each[name] for name, number in runs.items())
    return Work(rung, kind, sum(runs.values()), total, max(each.values()))


def total_seconds(works: Sequence[Work], n_jobs: int) -> float:
    """Return how long all work takes, so many runs at a time."""
    return sum(max(work.seconds / n_jobs, work.longest) for work in works if work.runs)


def time_lines(works: Sequence[Work], n_jobs: int) -> list[str]:
    """Return what is still to be trained and how long it will take, rung by rung."""
    lines = []
    for rung in {work.rung.number: work.rung for work in works}.values():
        own = [work for work in works if work.rung.number == rung.number and work.runs]
        parts = [f"{work.runs} {work.kind} runs of about {units.duration(work.longest)}" for work in own]
        if parts:
            spent = units.duration(total_seconds(own, n_jobs))
            lines.append(
                f"Rung {rung.number} ({rung.label} parameters): {', '.join(parts)}; together {spent}."
            )
    if not lines:
        return ["Nothing is left to be trained."]
    together = f", {n_jobs} runs at a time" if n_jobs > 1 else ""
    return [*lines, f"In all about {units.duration(total_seconds(works, n_jobs))}{together}."]


def refuse_too_long(needed: float, minutes: float, alternatives: Mapping[str, float]) -> None:
    """Raise UserError if a ladder needs more than its minutes.

    Args:
        needed: seconds.
        alternatives: overrides that make it shorter, the best first, and the seconds it would then need.
    """
    if needed <= minutes * 60:
        return
    enough = math.ceil(1.1 * needed / 60)
    fitting = [words for words, spent in alternatives.items() if spent <= minutes * 60]
    smaller = f" {fitting[0]} would fit." if fitting else ""
    raise UserError(
        f"What is left of this ladder needs about {units.duration(needed)}, which doesn't fit into"
        f" sweep.minutes={minutes:g}. Type sweep.minutes={enough}.{smaller}"
    )
