"""The runs of each mixer on each probe, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from minllm.estimates import Estimate, share_of
from minllm.study.tuning import Tuning

State = Literal["solved", "ran out", "diverged", "incomplete"]


@dataclass(frozen=True)
class ProbeRun:
    """A run of a mixer on a probe with its tuned values.

    accuracy, interval: of the answers' tokens, and the interval of this one run
    exact: share of whole answers
    tokens: how many answer tokens were evaluated
    steps: how many it trained
    """

    seed: int
    accuracy: float
    interval: tuple[float, float]
    exact: float | None
    tokens: int
    steps: int
    folder: str


@dataclass(frozen=True)
class Probe:
    """A task at one difficulty.

    name: unique among the probes of a profile
    task: the name of the task, which several difficulties share
    difficulty: the number that distinguishes it from the task's other difficulties; None if there is no such number
    chance: the accuracy of the best constant guess; None if it isn't known
    ceiling: the highest accuracy that is possible
    """

    name: str
    task: str
    overrides: Sequence[str]
    difficulty: float | None = None
    chance: float | None = None
    ceiling: float = 1.0


@dataclass(frozen=True)
class Cell:
    """A mixer on a probe.

    solved_at: the accuracy at which a run ends early, as a share of the ceiling
    planned: how many seeds were planned
    runs: those that were trained to their end, in the order of their seeds
    lost: the seeds with which training diverged or failed
    tuning: what was tried and chosen; None if time ran out before
    """

    mixer: str
    probe: Probe
    solved_at: float
    planned: int
    runs: Sequence[ProbeRun] = ()
    lost: Sequence[int] = ()
    tuning: Tuning | None = None

    @property
    def solved(self) -> Sequence[ProbeRun]:
        """The runs that reached the accuracy at which they end."""
        return [run for run in self.runs if run.accuracy >= self.solved_at]

    @property
    def state(self) -> State:
        """`solved` or `diverged` with most seeds, `incomplete` while it may become one of these, or `ran out`."""
        most = self.planned / 2
        if len(self.solved) > most:
            return "solved"
        if len(self.lost) > most:
            return "diverged"
        left = self.planned - self.ended
        return "incomplete" if max(len(self.solved), len(self.lost)) + left > most else "ran out"

    @property
    def ended(self) -> int:
        """With how many seeds training has ended."""
        return len(self.runs) + len(self.lost)

    @property
    def is_complete(self) -> bool:
        return self.ended >= self.planned

    @property
    def estimate(self) -> Estimate | None:
        """The mean accuracy over seeds; None without a run.

        Its interval is Korn and Graubard's, with the runs as groups: accuracies near 1 aren't normal, and answers of
        one run aren't independent. Where it would rest on too little, because there is a single run or all are equal,
        it is that of the first run, whose groups are the documents.
        """
        if not self.runs:
            return None
        counts = np.array([float(run.tokens) for run in self.runs])
        accuracies = np.array([run.accuracy for run in self.runs])
        if len(self.runs) == 1 or np.ptp(accuracies) == 0:
            return Estimate(float(accuracies[0]), self.runs[0].interval)
        return share_of(accuracies * counts, counts)

    @property
    def most_steps(self) -> int:
        return max((run.steps for run in self.runs), default=0)


@dataclass(frozen=True)
class Profile:
    """What each mixer does on each probe.

    mixers: their names, in the order in which they were typed
    cells: by the names of mixer and probe
    equal: what all mixers have the same of, as words
    command: what repeats it
    """

    mixers: Sequence[str]
    probes: Sequence[Probe]
    cells: Mapping[tuple[str, str], Cell]
    equal: str
    command: str
    params: Mapping[tuple[str, str], int]

    @property
    def is_complete(self) -> bool:
        return all(cell.is_complete for cell in self.cells.values())

    @property
    def tasks(self) -> dict[str, list[Probe]]:
        """The probes of each task, in the order of their difficulty."""
        grouped: dict[str, list[Probe]] = {}
        for probe in self.probes:
            grouped.setdefault(probe.task, []).append(probe)
        return {
            task: sorted(probes, key=lambda probe: probe.difficulty or 0) for task, probes in grouped.items()
        }

    def score(self, mixer: str, task: str) -> float | None:
        """Return a mixer's mean accuracy over the difficulties of a task, MAD's score; None if one is missing."""
        estimates = [self.cells[mixer, probe.name].estimate for probe in self.tasks[task]]
        known = [estimate.value for estimate in estimates if estimate]
        return math.fsum(known) / len(known) if len(known) == len(estimates) else None

    def rank(self, mixer: str) -> float:
        """Return a number that is greater for mixers that do more: the mean accuracy above chance."""
        return math.fsum(above_chance(self.cells[mixer, probe.name]) or 0.0 for probe in self.probes)


def above_chance(cell: Cell) -> float | None:
    """Return the accuracy on a scale on which chance is 0 and the ceiling 1; None without a run."""
    if cell.estimate is None:
        return None
    chance, ceiling = cell.probe.chance or 0.0, cell.probe.ceiling
    return min(1.0, max(0.0, (cell.estimate.value - chance) / (ceiling - chance)))
