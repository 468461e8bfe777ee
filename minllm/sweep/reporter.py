"""Records the outcome of each trial in the study: its state, its reason, and which checkpoints are kept."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from minllm.runs.outcome import OUTPUT, Outcome
from minllm.sweep.ends import output_tail
from minllm.sweep.plugin import RepeatedCrashes
from minllm.sweep.report.table import Table
from minllm.sweep.report.trials import best_of
from minllm.sweep.settings import SweepSettings

SHARED_ATTRIBUTES = (
    "reason",
    "text",
    "violation",
    "params",
    "predicted_bytes",
    "peak_bytes",
    "val_bound",
    "memory_ran_out",
    "overrides",
    "run",
)
"""User attributes that are copied from a trial to another with the same configuration."""


class Reporter:
    """Records the outcomes of trials in the study and shows them on the terminal."""

    def __init__(self, study: optuna.Study, settings: SweepSettings, table: Table, folder: Path):
        self.study, self.settings, self.table, self.folder = study, settings, table, folder
        self.kept = best_of(study)
        """The trial whose checkpoints are kept."""
        self.crashes: list[FrozenTrial] = []
        """The most recent consecutive crashes."""

    def tell(self, trial: optuna.Trial, result: Outcome) -> FrozenTrial:
        """Record the outcome of a trial that has run."""
        for name, value in result.figures.items():
            trial.set_user_attr(name, value)
        trial.set_user_attr(
            "overrides", reproducible_overrides(trial.user_attrs["overrides"], result.figures)
        )
        trial.set_user_attr("memory_ran_out", result.memory_ran_out)
        trial.set_user_attr("smaller_may_fit", result.smaller_may_fit)
        if result.reason:
            trial.set_user_attr("reason", result.reason)
            trial.set_user_attr("text", result.text)
        frozen = self._tell_state(trial, result.state, result.value)
        self.crashes = [*self.crashes, frozen] if result.state == "failed" else []
        self._tidy(frozen)
        return frozen

    def copy_outcome(self, trial: optuna.Trial, original: FrozenTrial) -> FrozenTrial:
        """Record for a trial the outcome of another with the same configuration."""
        for step, value in original.intermediate_values.items():
            trial.report(value, step)
        for name in SHARED_ATTRIBUTES:
            if name in original.user_attrs:
                trial.set_user_attr(name, original.user_attrs[name])
        trial.set_user_attr("same_as", original.user_attrs.get("same_as", original.number))
        if original.state == TrialState.FAIL:
            return self._tell_state(trial, "failed", None)
        was_pruned = original.state == TrialState.PRUNED or "violation" in original.user_attrs
        return self._tell_state(trial, "pruned" if was_pruned else "complete", original.value)

    def stop_if_all_crash(self) -> None:
        """Raise RepeatedCrashes if `sweep.max_failures` trials in a row have crashed."""
        if len(self.crashes) >= self.settings.max_failures:
            raise RepeatedCrashes(
                f"The search stopped because {len(self.crashes)} trials in a row crashed. {self._first_crash()}"
            )

    def refuse_only_crashes(self) -> None:
        """Raise RepeatedCrashes if trials of this call crashed and the study has no other result."""
        finished = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
        if self.crashes and all(trial.state == TrialState.FAIL for trial in finished):
            raise RepeatedCrashes(f"Every trial crashed. {self._first_crash()}")

    def _first_crash(self) -> str:
        first = self.crashes[0]
        folder = folder_of(first, self.folder)
        if folder is None:
            return f"The first was trial {first.number}: {first.user_attrs['text']}"
        return (
            f"The first was trial {first.number}, with this output (in {folder / OUTPUT}):\n\n"
            f"{output_tail(folder)}\n{first.user_attrs['text']}"
        )

    def _tell_state(self, trial: optuna.Trial, state: str, value: float | None) -> FrozenTrial:
        """Record state and value. Samplers that ignore pruned trials learn from a bad value instead."""
        blind = self.study.sampler.ignores_pruned
        if blind and state != "failed":
            trial.set_constraint("trained", 0.0 if state == "complete" else 1.0)
        if blind and state == "pruned":
            trial.set_user_attr("violation", 1.0)
            frozen = self.study.tell(trial, self._worst())
        elif state == "complete":
            frozen = self.study.tell(trial, value)
        else:
            frozen = self.study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)
        self.table.ended(frozen)
        return frozen

    def _worst(self) -> float:
        """Return the worst loss of the study, which stands in for a pruned trial's; or a rough guess without any."""
        trials = self.study.get_trials(deepcopy=False)
        losses = [value for trial in trials for value in (*trial.intermediate_values.values(), trial.value)]
        return max(
            (loss for loss in losses if loss is not None and math.isfinite(loss)), default=math.log(1 << 16)
        )

    def _tidy(self, ended_trial: FrozenTrial) -> None:
        """Remove the checkpoints that `sweep.keep_checkpoints` doesn't keep."""
        if self.settings.keep_checkpoints == "all":
            return
        best = best_of(self.study) if self.settings.keep_checkpoints == "best" else None
        ended = {folder_of(trial, self.folder) for trial in (ended_trial, self.kept)}
        for folder in ended - {folder_of(best, self.folder), None}:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self.kept = best


def folder_of(trial: FrozenTrial | None, study_folder: Path) -> Path | None:
    """Return the folder of a trial's run; None if the study records none, or one outside the study's folder.

    A study may have been copied from anywhere, so its paths can't be trusted: only files below the study's folder,
    with links resolved, are read, shown or removed.
    """
    if trial is None or not isinstance(named := trial.user_attrs.get("run"), str):
        return None
    try:
        folder = Path(named).resolve()
        return folder if study_folder.resolve() in folder.parents else None
    except (OSError, ValueError, RuntimeError):  # a loop of links, or not a valid path
        return None


def reproducible_overrides(overrides: list[str], measurements: Mapping[str, Any]) -> list[str]:
    """Return a trial's overrides plus those that fix what the run decided itself, so that they reproduce it."""
    decided = {}
    if "precision" in measurements:
        decided["train.precision"] = measurements["precision"]
    if "compile" in measurements:
        decided["train.compile"] = str(measurements["compile"]).lower()
    if (
        "micro_batch_size" in measurements
        and measurements["micro_batch_size"] < measurements["micro_batch_size_asked"]
    ):
        decided["train.micro_batch_size"] = measurements["micro_batch_size"]
    unchanged = [override for override in overrides if override.partition("=")[0] not in decided]
    return [*unchanged, *(f"{name}={value}" for name, value in decided.items())]
