"""The results of an arm's tuning runs: which values succeeded, and how good each is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from optuna.trial import FrozenTrial

from minllm.errors import UserError
from minllm.study.tuning import Tried
from minllm.sweep.report.trials import is_complete

Values: TypeAlias = tuple[tuple[str, float], ...]
"""The tuned keys with their values."""
Run: TypeAlias = tuple[Values, int]
"""Values, and the seed that they are tried with."""
Round: TypeAlias = Sequence[Run]
"""Runs that don't depend on each other's results."""
Results: TypeAlias = Mapping[Run, float | None]
"""The metric of each run; None if it diverged or failed."""


DIVERGED = "diverged"
"""The reason of a trial whose training diverged; see `minllm.runs.outcome`."""


def value_of(trial: FrozenTrial, who: str) -> float | None:
    """Return the value of a trial that has ended; None if training diverged.

    Args:
        who: the arm, and what it is trained on, for a sentence.

    Raises:
        UserError: it failed in another way.
    """
    if is_complete(trial):
        return trial.value
    if trial.user_attrs.get("reason") == DIVERGED:
        return None
    raise UserError(f"{who} can't be trained: {trial.user_attrs.get('text', 'it crashed.')}")


def tried(results: Results, planned: Sequence[Values]) -> list[Tried]:
    """Return what was tried, in increasing order of the values."""
    losses: dict[Values, dict[int, float | None]] = {}
    for (values, seed), loss in results.items():
        losses.setdefault(values, {})[seed] = loss
    return [Tried(dict(values), losses[values], values in planned) for values in sorted(losses)]


def ranked(among: Sequence[Values], results: Results, seeds: Sequence[int]) -> list[Values]:
    """Return values that succeeded, the best first; ties keep their order."""
    losses = mean_losses(among, results, seeds)
    return sorted(among, key=losses.__getitem__)


def mean_losses(among: Sequence[Values], results: Results, seeds: Sequence[int]) -> dict[Values, float]:
    """Return the mean loss over all seeds of values that succeeded.

    Where only the first seed was tried, its loss is moved by as much as the mean over all seeds differs from the
    first seed's loss where both are known, so that values are compared as if all had been tried with every seed.
    """
    first = {values: results[values, seeds[0]] for values in among}
    means = {
        values: math.fsum(results[values, seed] for seed in seeds) / len(seeds)
        for values in among
        if not missing(values, results, seeds)
    }
    shifts = [mean - first[values] for values, mean in means.items()]
    shift = math.fsum(shifts) / len(shifts) if shifts else 0.0
    return {values: means.get(values, first[values] + shift) for values in among}


def cannot_be_improved(loss: float, perfect: float) -> bool:
    """Whether a mean loss is the lowest possible one, up to rounding."""
    return loss <= perfect * (1 + 1e-9)


def missing(values: Values, results: Results, seeds: Sequence[int]) -> list[Run]:
    """Return the runs with the seeds that the values haven't been tried with."""
    return [(values, seed) for seed in seeds if (values, seed) not in results]


def succeeded(values: Values, results: Results, seeds: Sequence[int]) -> bool:
    """Whether no run with these values diverged or failed."""
    return all(results.get((values, seed), math.inf) is not None for seed in seeds)
