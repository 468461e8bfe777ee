"""The progress of a search: a live table on a terminal; elsewhere, one line for each trial that ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, TypeAlias

import rich.box
import rich.table
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.text import Text

from minllm.page import units
from minllm.schema.overrides import short_names
from minllm.sweep.report.trials import (
    Description,
    accuracies_in,
    counted,
    described,
    is_complete,
    ranked,
    seconds_of,
    varying,
)

ROWS = 15
WIDEST = 14  # maximum width of a parameter's column
BELOW = 8  # lines that the rest of the table takes
STYLES = {"complete": "green", "reused": "green dim", "running": "cyan", "failed": "red"}
Column: TypeAlias = tuple[str, list[str], Literal["left", "right"]]


class Table:
    """Shows the progress of a search; use it as a context manager."""

    def __init__(self, study_name: str, metric: str, n_trials: int, n_jobs: int):
        self.study_name, self.metric, self.n_trials, self.n_jobs = study_name, metric, n_trials, n_jobs
        self.console = Console(stderr=True)
        # the caller of update() knows when something has changed, so rich needs no refresh thread
        self.live = Live(console=self.console, auto_refresh=False) if sys.stderr.isatty() else None
        self.done: set[int] = set()
        self.best: FrozenTrial | None = None

    def __enter__(self) -> Table:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def update(self, trials: Sequence[FrozenTrial], now: float | None = None) -> None:
        """Show all trials of the study as of `now`, in seconds since 1970."""
        self.done = {trial.number for trial in trials if trial.state.is_finished()}
        self.best = next(iter(ranked(trials)), None)
        if self.live:
            self.live.update(self.drawn(trials, now or time.time()), refresh=True)

    def ended(self, trial: FrozenTrial) -> None:
        """Print how a trial ended, unless the live table shows it."""
        self.done.add(trial.number)
        self.best = next(iter(ranked([trial, *([self.best] if self.best else [])])), None)
        if not self.live:
            print(self.line(trial), flush=True)

    def line(self, trial: FrozenTrial) -> str:
        """Return the line about a trial that has ended."""
        description, shorts = described(trial), short_names(varying([trial]))
        parts = [
            description.state,
            description.value and f"{self.metric} {description.value}",
            self._comparison_with_best(trial),
            *(f"{short} {description.settings[name]}" for name, short in shorts.items()),
            description.peak,
            description.elapsed,
            description.why,
        ]
        return f"[{len(self.done)}/{self.n_trials}] trial {trial.number}: " + ", ".join(filter(None, parts))

    def drawn(self, trials: Sequence[FrozenTrial], now: float) -> rich.table.Table:
        """Return the table of the running, best and latest trials."""
        rows = [described(trial, now) for trial in self._shown_trials(trials)]
        table = rich.table.Table(
            title=Text(self.study_name),
            caption=Text(self._caption(trials, now)),
            box=rich.box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            title_justify="left",
            caption_justify="left",
        )
        columns = self._columns(trials, rows)
        for heading, _, side in columns:
            table.add_column(Text(heading), justify=side, no_wrap=True, overflow="ellipsis")
        for description, *cells in zip(rows, *(cells for _, cells, _ in columns)):
            style = STYLES.get(description.state, "yellow")
            bold = " bold" if self.best and description.number == self.best.number else ""
            # Text, because rich would read a plain string such as [a] as markup
            table.add_row(*map(Text, cells), style=style + bold)
        return table

    def _columns(self, trials: Sequence[FrozenTrial], rows: Sequence[Description]) -> list[Column]:
        """Return the table's columns, with as many parameters as fit on the terminal."""
        so_far = _best_so_far(trials)
        before = [
            ("trial", [str(description.number) for description in rows], "right"),
            ("state", [description.state for description in rows], "left"),
        ]
        after = [
            (self.metric, [description.value for description in rows], "right"),
            *(
                (name, [description.accuracies.get(name, "") for description in rows], "right")
                for name in accuracies_in(rows)
            ),
            ("best", [so_far.get(description.number, "") for description in rows], "right"),
            ("time", [description.elapsed for description in rows], "right"),
        ]
        settings = [
            (
                _shortened(short),
                [_shortened(description.settings.get(name, "")) for description in rows],
                "left",
            )
            for name, short in short_names(varying(trials)).items()
        ]
        while settings and _width([*before, *settings, *after]) > self.console.width:
            settings.pop()
        return [*before, *settings, *after]

    def _shown_trials(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the running trials, the best one, and as many of the latest as fit on the terminal."""
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        finished = [trial for trial in trials if trial.state.is_finished()]
        room = max(1, min(ROWS, self.console.height - BELOW) - len(running))
        shown = {trial.number: trial for trial in [*running, *finished[-room:], *filter(None, [self.best])]}
        return [shown[number] for number in sorted(shown)]

    def _caption(self, trials: Sequence[FrozenTrial], now: float) -> str:
        best = f"best {described(self.best).value} (trial {self.best.number})" if self.best else "no best yet"
        counts = ", ".join(f"{count} {state}" for state, count in counted(trials).items())
        return f"{len(self.done)}/{self.n_trials} ended, {self._left(trials, now)} left, {best}\n{counts}"

    def _left(self, trials: Sequence[FrozenTrial], now: float) -> str:
        """Return the estimated time left, from the mean time of the finished trials; "?" before any has finished."""
        took = [seconds_of(trial) or 0.0 for trial in trials if trial.state.is_finished()]
        if not took:
            return "?"
        each = sum(took) / len(took)
        running = [seconds_of(trial, now) or 0.0 for trial in trials if trial.state == TrialState.RUNNING]
        unbegun = max(0, self.n_trials - len(took) - len(running))
        rest = unbegun * each + sum(max(0.0, each - so_far) for so_far in running)
        return units.duration(rest / self.n_jobs, tenths=False)

    def _comparison_with_best(self, trial: FrozenTrial) -> str:
        if self.best is None:
            return ""
        if self.best.number == trial.number:
            return "the best so far"
        return f"best {described(self.best).value} (trial {self.best.number})"


def _width(columns: Sequence[Column]) -> int:
    """Return the width of a table: each column has two spaces beside it, and the table one on either side."""
    return 2 + sum(2 + max(map(len, [heading, *cells])) for heading, cells, _ in columns)


def _shortened(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _best_so_far(trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Return the lowest value up to each finished trial, keyed by its number."""
    values: dict[int, str] = {}
    best: FrozenTrial | None = None
    for trial in trials:
        if is_complete(trial) and (best is None or trial.value < best.value):
            best = trial
        if trial.state.is_finished() and best is not None:
            values[trial.number] = described(best).value
    return values
