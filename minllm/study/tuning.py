"""How an arm's hyper-parameters were chosen: what was tried, what was chosen, and whether more runs could change it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RATE = "optim.lr"


@dataclass(frozen=True)
class Tried:
    """Values of the tuned hyper-parameters, and the metric that was reached with them.

    losses: by tuning seed; None if training diverged or failed
    planned: whether every arm tries this multiple of its configured values; False if it was added past an edge
    """

    values: Mapping[str, float]
    losses: Mapping[int, float | None]
    planned: bool = True

    @property
    def succeeded(self) -> bool:
        """Whether no run diverged or failed."""
        return None not in self.losses.values()

    @property
    def mean(self) -> float | None:
        """The mean over the seeds; None if a run diverged or failed."""
        known = [loss for loss in self.losses.values() if loss is not None]
        return math.fsum(known) / len(known) if known and self.succeeded else None


@dataclass(frozen=True)
class Tuning:
    """The tuning of an arm.

    tried: all values that were tried
    chosen: the values that the arm is trained with
    how: how they were chosen, as the end of a sentence that begins with the values
    most_runs: the limit on the number of tuning runs, which is the same for every arm
    unsettled: why more tuning could change the choice, as a clause; "" if the choice is settled
    """

    tried: Sequence[Tried]
    chosen: Mapping[str, float]
    how: str
    most_runs: int
    unsettled: str = ""

    @property
    def always_diverged(self) -> bool:
        """Whether there is nothing to choose from, because training diverged with all values that were tried."""
        return not any(tried.succeeded for tried in self.tried)

    @property
    def keys(self) -> list[str]:
        return list(self.chosen)

    @property
    def runs(self) -> int:
        return sum(len(tried.losses) for tried in self.tried)

    @property
    def planned_losses(self) -> list[float | None]:
        """The metric of each planned trial with the first tuning seed, which every arm has the same number of."""
        return [next(iter(tried.losses.values())) for tried in self.tried if tried.planned]

    @property
    def overrides(self) -> list[str]:
        """The chosen values as overrides."""
        return [f"{key}={value!r}" for key, value in self.chosen.items()]
