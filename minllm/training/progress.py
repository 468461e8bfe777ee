"""The progress bar on a terminal: one line, however narrow the terminal is."""

from __future__ import annotations

import math
from typing import Any, TextIO

from tqdm import tqdm

from minllm.training.budget import ENDLESS, Budget
from minllm.training.checkpoints import Progress

KNOWN = "{desc} {percentage:3.0f}%|{bar}| {told}"
ENDLESS_FORMAT = "{desc} |{bar}| {told}"


class ProgressBar(tqdm):
    """Shows the share of training that is done, the time left if known, and the latest metrics."""

    def __init__(self, *, shown: bool, file: TextIO | None = None):
        self.told = ""
        super().__init__(
            total=1,
            disable=not shown,
            file=file,
            bar_format=KNOWN,
            desc="Training",
            leave=False,
            dynamic_ncols=True,
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        return {**super().format_dict, "told": self.told}

    def show(self, progress: Progress, budget: Budget, loss: float, tokens_per_second: float) -> None:
        """Update the bar with the run's progress."""
        if self.disable:
            return
        known = budget.total_steps != ENDLESS
        self.bar_format = KNOWN if known else ENDLESS_FORMAT
        self.total = budget.total_steps if known else None
        self.told = (
            f"{time_left(progress, budget)}step {progress.step}, loss {loss:.3f},"
            f" {tokens_per_second:,.0f} tokens/s"
        )
        self.update(progress.position - self.n)


def time_left(progress: Progress, budget: Budget) -> str:
    """Return text such as `01:30 left, `, from the average pace so far; empty while the pace is unknown."""
    pace = progress.timed_seconds / progress.timed_steps if progress.timed_steps else math.inf
    seconds = budget.seconds_left(progress.step, progress.seconds, pace)
    return f"{tqdm.format_interval(seconds)} left, " if math.isfinite(seconds) else ""
