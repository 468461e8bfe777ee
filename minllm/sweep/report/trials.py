"""Descriptions of a search's trials: how each ended, its parameters, and its memory and time.

The search stores a trial's state and value in Optuna, and the rest in its user attributes:

    overrides           the command-line overrides that run it
    run                 its run folder
    reason, text        why it was pruned or failed: a keyword, and a sentence
    predicted_bytes, peak_bytes, seconds, params
    val_bound           whether its losses are exact or an upper bound; those of older trials are exact
    val_accuracy, val_exact  of data with answers
    same_as             number of the trial with the same configuration whose value was reused
    violation           above 0 if the value is a stand-in for a pruned trial's, for samplers that ignore pruned trials
"""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from minllm.page import units
from minllm.schema.overrides import format_value
from minllm.sweep.metric import Accuracy

DID_NOT_FIT = ("pruned: predicted", "pruned: memory", "pruned: killed")
MEANINGS = {
    "complete": "ran to completion",
    "reused": "had the same configuration as an earlier trial, whose value was reused",
    "pruned: pruner": "was worse than other trials",
    "pruned: predicted": "was predicted not to fit in memory, and didn't start",
    "pruned: memory": "ran out of memory",
    "pruned: killed": "was killed because the machine ran out of memory",
    "pruned: diverged": "had a non-finite loss, or losses of training and validation above its initial loss",
    "pruned: time": "took longer than its time limit",
    "pruned": "recorded no reason",
    "failed": "crashed",
    "running": "is running",
    "waiting": "is queued",
}
RANKED_WITH_EXACT = (
    "They are ranked with exact values as if they were exact, although the true values may be lower, so the ranking"
    " favours the exact ones."
)


def state_of(trial: FrozenTrial) -> str:
    """Return how a trial ended: a keyword, with the reason if it was pruned."""
    if is_complete(trial):
        return "complete" if trial.user_attrs.get("same_as") is None else "reused"
    if trial.state in (TrialState.PRUNED, TrialState.COMPLETE):
        reason = trial.user_attrs.get("reason")
        return f"pruned: {reason}" if reason else "pruned"
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


def is_complete(trial: FrozenTrial) -> bool:
    """Whether a trial has a real value, rather than one that stands in for a pruned trial's."""
    return (
        trial.state == TrialState.COMPLETE
        and not (trial.user_attrs.get("violation") or 0) > 0
        and math.isfinite(trial.value)
    )


def accuracies_in(descriptions: Iterable[Description]) -> list[str]:
    """Return the accuracies that any of the trials has."""
    found = {name for description in descriptions for name in description.accuracies}
    return [name for name in get_args(Accuracy) if name in found]


def best_of(study: optuna.Study) -> FrozenTrial | None:
    """Return the complete trial with the lowest value; None if no trial is complete."""
    return next(iter(ranked(study.get_trials(deepcopy=False))), None)


def ranked(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the complete trials, best first; ties are ordered by number."""
    return sorted(filter(is_complete, trials), key=lambda trial: (trial.value, trial.number))


def about_bounds(trials: Iterable[FrozenTrial]) -> str:
    """Return a sentence on values that are upper bounds; "" if none of the complete trials has one."""
    are_bounds = {trial.user_attrs.get("val_bound") == "upper" for trial in trials if is_complete(trial)}
    mixed = f" {RANKED_WITH_EXACT}" if len(are_bounds) > 1 else ""
    return f"{units.AT_MOST} marks values that are upper bounds.{mixed}" if True in are_bounds else ""


def counted(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Return the number of trials per state, in the order of MEANINGS; "complete" is included even if it's 0."""
    counts = Counter(map(state_of, trials))
    order = [*MEANINGS, *sorted(counts.keys() - MEANINGS)]
    return {state: counts[state] for state in order if counts[state] or state == "complete"}


def varying(trials: Iterable[FrozenTrial]) -> list[str]:
    """Return the parameters that have more than one value, in order of appearance."""
    return list(
        dict.fromkeys(
            name
            for trial in trials
            for name, distribution in trial.distributions.items()
            if not distribution.single()
        )
    )


@dataclass(frozen=True)
class Description:
    """A trial as text; "" for what isn't known."""

    number: int
    state: str
    value: str
    accuracies: dict[str, str]
    """val_accuracy and val_exact, of data with answers."""
    settings: dict[str, str]
    """Its parameters, keyed by full name."""
    params: str
    predicted: str
    peak: str
    elapsed: str
    why: str


def described(trial: FrozenTrial, now: float | None = None) -> Description:
    """Return a trial as text; the elapsed time of a running one is as of `now`, in seconds since 1970."""
    known = {name: value for name, value in trial.user_attrs.items() if value is not None}
    elapsed = seconds_of(trial, now)
    return Description(
        number=trial.number,
        state=state_of(trial),
        value=units.marked(f"{trial.value:.4f}", known.get("val_bound")) if is_complete(trial) else "",
        accuracies={name: f"{known[name]:.4f}" for name in get_args(Accuracy) if name in known},
        settings={name: shown(value) for name, value in trial.params.items()},
        params=f"{known['params']:,}" if "params" in known else "",
        predicted=units.mib(known["predicted_bytes"]) if "predicted_bytes" in known else "",
        peak=units.mib(known["peak_bytes"]) if "peak_bytes" in known else "",
        elapsed="" if elapsed is None else units.duration(elapsed, tenths=False),
        why=" ".join(known.get("text", "").split()),
    )


def seconds_of(trial: FrozenTrial, now: float | None = None) -> float | None:
    """Return how many seconds a trial took, or has been running; None if it hasn't started."""
    if trial.user_attrs.get("seconds") is not None:
        return trial.user_attrs["seconds"]
    if trial.datetime_start is None:
        return None
    end = trial.datetime_complete.timestamp() if trial.datetime_complete else now or time.time()
    return max(0.0, end - trial.datetime_start.timestamp())


def memory_of(trial: FrozenTrial) -> float:
    """Return a trial's predicted peak in bytes, which even one that never started has; else the measured one, or 0."""
    return trial.user_attrs.get("predicted_bytes") or trial.user_attrs.get("peak_bytes") or 0


def shown(value: Any) -> str:
    """Return a parameter's value as it would be typed, with floats rounded to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else format_value(value)


def counted_noun(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def rerun(trial: FrozenTrial) -> str:
    """Return the command that runs a trial again; "" if its overrides weren't recorded.

    Floating-point sums depend on the number of threads, so the command sets it if the trial's differed from a run's.
    """
    overrides, threads = trial.user_attrs.get("overrides"), trial.user_attrs.get("threads")
    if overrides is None:
        return ""
    own = [] if threads in (None, torch.get_num_threads()) else [f"OMP_NUM_THREADS={threads}"]
    return " ".join([*own, shlex.join(["python", "run.py", *overrides])])
