"""A trial of a search in words: what became of it, what was tried in it, and how much it took.

The search tells Optuna how a trial ended, and leaves the rest in its user attributes:

    overrides           what would be typed to run it
    run                 its folder
    reason, text        why it was pruned or failed: in a word, and as a sentence
    predicted_bytes, peak_bytes, seconds, params
    same_as             the number of a trial with the same configuration, whose value was taken
    violation           above 0 where a sampler that ignores pruned trials was told a value that stands in for none
"""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from minllm.page import units
from minllm.schema.overrides import written

DID_NOT_FIT = ("pruned: predicted", "pruned: memory", "pruned: killed")
MEANINGS = {
    "complete": "ran to its end",
    "reused": "had the configuration of an earlier trial, whose value was taken",
    "pruned: pruner": "fell behind the others",
    "pruned: predicted": "was predicted not to fit in memory, and never started",
    "pruned: memory": "ran out of memory",
    "pruned: killed": "was killed by the kernel for its memory",
    "pruned: diverged": "had a loss that was no number, or above where it began",
    "pruned: time": "took longer than its limit",
    "pruned": "left no reason",
    "failed": "crashed",
    "running": "is under way",
    "waiting": "has yet to begin",
}


def state_of(trial: FrozenTrial) -> str:
    """Return what became of a trial: a word, and the reason where it was pruned."""
    if is_complete(trial):
        return "complete" if trial.user_attrs.get("same_as") is None else "reused"
    if trial.state in (TrialState.PRUNED, TrialState.COMPLETE):
        reason = trial.user_attrs.get("reason")
        return f"pruned: {reason}" if reason else "pruned"
    return "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()


def is_complete(trial: FrozenTrial) -> bool:
    """Whether a trial has a value of its own, rather than one that stands in for a pruned trial's."""
    return (
        trial.state == TrialState.COMPLETE
        and not (trial.user_attrs.get("violation") or 0) > 0
        and math.isfinite(trial.value)
    )


def best_of(study: optuna.Study) -> FrozenTrial | None:
    """Return the trial with the lowest value of its own; None where no trial has one."""
    return next(iter(ranked(study.get_trials(deepcopy=False))), None)


def ranked(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the complete trials, the best first; of those that are equal, the earliest."""
    return sorted(filter(is_complete, trials), key=lambda trial: (trial.value, trial.number))


def counted(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Return how many trials came to what, in the order of MEANINGS; complete ones even where there are none."""
    found = Counter(map(state_of, trials))
    order = [*MEANINGS, *sorted(found.keys() - MEANINGS)]
    return {state: found[state] for state in order if found[state] or state == "complete"}


def varying(trials: Iterable[FrozenTrial]) -> list[str]:
    """Return the parameters that the search may choose, in the order in which they came up."""
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
    """A trial as people are shown it; "" is what it has none of."""

    number: int
    state: str
    value: str
    settings: dict[str, str]
    """What was tried: its parameters by their full names."""
    params: str
    predicted: str
    peak: str
    elapsed: str
    why: str


def described(trial: FrozenTrial, now: float | None = None) -> Description:
    """Return a trial in words; `now`, in seconds since 1970, is what a running one has come to."""
    known = {name: value for name, value in trial.user_attrs.items() if value is not None}
    elapsed = seconds_of(trial, now)
    return Description(
        number=trial.number,
        state=state_of(trial),
        value=f"{trial.value:.4f}" if is_complete(trial) else "",
        settings={name: shown(value) for name, value in trial.params.items()},
        params=f"{known['params']:,}" if "params" in known else "",
        predicted=units.mib(known["predicted_bytes"]) if "predicted_bytes" in known else "",
        peak=units.mib(known["peak_bytes"]) if "peak_bytes" in known else "",
        elapsed="" if elapsed is None else units.duration(elapsed, tenths=False),
        why=" ".join(known.get("text", "").split()),
    )


def seconds_of(trial: FrozenTrial, now: float | None = None) -> float | None:
    """Return how long a trial took, or has been running; None where it hasn't begun."""
    if trial.user_attrs.get("seconds") is not None:
        return trial.user_attrs["seconds"]
    if trial.datetime_start is None:
        return None
    end = trial.datetime_complete.timestamp() if trial.datetime_complete else now or time.time()
    return max(0.0, end - trial.datetime_start.timestamp())


def memory_of(trial: FrozenTrial) -> float:
    """Return the bytes a trial was predicted to take, which even one that never started has; else those measured."""
    return trial.user_attrs.get("predicted_bytes") or trial.user_attrs.get("peak_bytes") or 0


def shown(value: Any) -> str:
    """Return a parameter's value as it's typed, but for digits that no one asks for."""
    return f"{value:.4g}" if isinstance(value, float) else written(value)


def in_words(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def rerun(trial: FrozenTrial) -> str:
    """Return the line that runs a trial again; "" where the search left no words of it.

    A sum depends on how many threads it's cut into, so a trial that had fewer than a run has says how many.
    """
    words, threads = trial.user_attrs.get("overrides"), trial.user_attrs.get("threads")
    if words is None:
        return ""
    own = [] if threads in (None, torch.get_num_threads()) else [f"OMP_NUM_THREADS={threads}"]
    return " ".join([*own, shlex.join(["python", "run.py", *words])])
