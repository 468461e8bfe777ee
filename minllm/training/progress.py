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
    """Training, the share of it that is done, the time that is left where that is known, and the latest figures."""

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
        """Show how far the run is."""
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
    """Return `` 01:30 left, ``, at the pace of the whole run so far; nothing while no pace is known."""
    pace = progress.timed_seconds / progress.timed_steps if progress.timed_steps else math.inf
    seconds = budget.seconds_left(progress.step, progress.seconds, pace)
    return f"{tqdm.format_interval(seconds)} left, " if math.isfinite(seconds) else ""
