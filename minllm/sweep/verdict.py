"""What a trial's end means to the study: which state it's told, with which reason, and what is kept of its run."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import signal
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import JobReturn
from optuna.trial import FrozenTrial, TrialState

from minllm.errors import UserError
from minllm.sweep.launchers import outcome_of_job
from minllm.sweep.outcome import OUTPUT, Outcome
from minllm.sweep.plugin import TooManyFailures
from minllm.sweep.processes import NO_ROOM, ProcessDied, ServerDied
from minllm.sweep.report import best_of
from minllm.sweep.settings import Settings
from minllm.sweep.table import Table

OF_BOTH_TWINS = (
    "reason",
    "text",
    "violation",
    "params",
    "predicted_bytes",
    "peak_bytes",
    "memory_ran_out",
    "run",
)
"""What is known of a trial because it's known of another that computes the same."""

TAIL = 4000  # characters of a trial's output that are shown


class Verdicts:
    """Tells the study, and the person who looks on, what became of trials."""

    def __init__(self, study: optuna.Study, settings: Settings, table: Table):
        self.study, self.settings, self.table = study, settings, table
        self.kept = best_of(study)
        """The trial whose checkpoints are kept."""
        self.crashes: list[FrozenTrial] = []
        """The latest in a row."""

    def tell(self, trial: optuna.Trial, result: Outcome) -> FrozenTrial:
        """Tell the outcome of a trial that has run."""
        for name, value in result.figures.items():
            trial.set_user_attr(name, value)
        trial.set_user_attr("overrides", exactly(trial.user_attrs["overrides"], result.figures))
        trial.set_user_attr("memory_ran_out", result.memory_ran_out)
        if result.reason:
            trial.set_user_attr("reason", result.reason)
            trial.set_user_attr("text", result.text)
        told = self._tell_state(trial, result.state, result.value)
        self.crashes = [*self.crashes, told] if result.state == "failed" else []
        self._tidy(told)
        return told

    def tell_the_same(self, trial: optuna.Trial, twin: FrozenTrial) -> FrozenTrial:
        """Tell of a trial what was told of another that computes the same."""
        for step, value in twin.intermediate_values.items():
            trial.report(value, step)
        for name in OF_BOTH_TWINS:
            if name in twin.user_attrs:
                trial.set_user_attr(name, twin.user_attrs[name])
        trial.set_user_attr("same_as", twin.user_attrs.get("same_as", twin.number))
        if twin.state == TrialState.FAIL:
            return self._tell_state(trial, "failed", None)
        was_pruned = twin.state == TrialState.PRUNED or "violation" in twin.user_attrs
        return self._tell_state(trial, "pruned" if was_pruned else "complete", twin.value)

    def stop_if_all_crash(self) -> None:
        """Raise TooManyFailures when as many in a row have crashed as the search puts up with."""
        if len(self.crashes) < max(self.settings.max_failures, 1):
            return
        first = self.crashes[0]
        output = Path(first.user_attrs["run"]) / OUTPUT
        said = output.read_text(encoding="utf-8", errors="replace")[-TAIL:] if output.exists() else ""
        raise TooManyFailures(
            f"{len(self.crashes)} trials in a row have crashed, so the search stops. The first, trial {first.number},"
            f" said (in {output}):\n\n{said}\n{first.user_attrs['text']}"
        )

    def _tell_state(self, trial: optuna.Trial, state: str, value: float | None) -> FrozenTrial:
        """Tell state and value. A sampler that is blind to pruned trials gets a value that shows the wall."""
        blind = self.study.sampler.is_blind_to_pruned
        if blind and state != "failed":
            trial.set_constraint("trained", 0.0 if state == "complete" else 1.0)
        if blind and state == "pruned":
            trial.set_user_attr("violation", 1.0)
            told = self.study.tell(trial, self._worst())
        elif state == "complete":
            told = self.study.tell(trial, value)
        else:
            told = self.study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)
        self.table.ended(told)
        return told

    def _worst(self) -> float:
        """Return the worst loss that was seen, for a trial that has none; where none was, that of a coarse guess."""
        trials = self.study.get_trials(deepcopy=False)
        seen = [value for trial in trials for value in (*trial.intermediate_values.values(), trial.value)]
        return max((one for one in seen if one is not None and math.isfinite(one)), default=math.log(1 << 16))

    def _tidy(self, told: FrozenTrial) -> None:
        """Remove the checkpoints that the search doesn't keep: they are as large as models, and there are many."""
        if self.settings.keep_checkpoints == "all":
            return
        best = best_of(self.study) if self.settings.keep_checkpoints == "best" else None
        for folder in {folder_of(told), folder_of(self.kept)} - {folder_of(best), None}:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self.kept = best


def folder_of(trial: FrozenTrial | None) -> Path | None:
    return Path(trial.user_attrs["run"]) if trial is not None and "run" in trial.user_attrs else None


def without_outcome(future: Future[JobReturn], run_dir: Path) -> Outcome:
    """Say what became of a trial whose process left no outcome.

    Raises:
        UserError: the disk is full, or no trial can run any more.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # Hydra prints a line of its own before it raises
            future.result().return_value  # noqa: B018
        return crashed("Its process ended as if all were well, and left no outcome", run_dir)
    except ProcessDied as death:
        return outcome_of(death, run_dir)
    except ServerDied:
        raise UserError(
            "The process that trials are started from has ended, as if somebody had killed it. Type the same command"
            " again: the search goes on."
        ) from None
    except Exception as error:
        return outcome_of_job(error, run_dir)


def outcome_of(death: ProcessDied, run_dir: Path) -> Outcome:
    if death.status == NO_ROOM:
        raise no_room(run_dir)
    if death.timed_out:
        return Outcome("pruned", reason="time", text="It took longer than sweep.trial_minutes.")
    if death.killed_for_memory:
        return Outcome(
            "pruned", reason="killed", text="The kernel ended it, since the machine's memory ran out."
        )
    if death.status == -signal.SIGABRT and "bad_alloc" in said_in(run_dir):
        return Outcome("pruned", reason="memory", text="Memory ran out where that can't be caught.")
    how = f"exit code {death.status}" if death.status > 0 else signal.Signals(-death.status).name
    return crashed(f"Its process ended with {how}", run_dir)


def no_room(folder: Path) -> UserError:
    return UserError(
        f"The disk is full at {folder}. Make room and type the same command again: the search goes on."
    )


def crashed(text: str, run_dir: Path) -> Outcome:
    return Outcome("failed", reason="crash", text=f"{text}. See {run_dir / OUTPUT}.")


def said_in(run_dir: Path) -> str:
    try:
        return (run_dir / OUTPUT).read_text(encoding="utf-8", errors="replace")[-TAIL:]
    except FileNotFoundError:
        return ""


def exactly(words: list[str], figures: Mapping[str, Any]) -> list[str]:
    """Return the words of a trial with those that pin what it decided for itself: they run it again as it was."""
    decided = {}
    if "precision" in figures:
        decided["train.precision"] = figures["precision"]
    if "compile" in figures:
        decided["train.compile"] = str(figures["compile"]).lower()
    if "micro_batch_size" in figures and figures["micro_batch_size"] < figures["micro_batch_size_asked"]:
        decided["train.micro_batch_size"] = figures["micro_batch_size"]
    kept = [word for word in words if word.partition("=")[0] not in decided]
    return [*kept, *(f"{name}={value}" for name, value in decided.items())]
