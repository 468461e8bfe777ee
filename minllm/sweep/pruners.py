"""Pruners: when a search stops a trial that is worse than others were.

A trial is evaluated `train.evals` times, evenly along its way. After the k-th evaluation it reports its loss as step k,
so here a step is an evaluation, and the resources of the papers are counted in them.
"""

from __future__ import annotations

import warnings
from typing import Annotated

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    SuccessiveHalvingPruner,
)

from minllm.errors import UserError
from minllm.schema.options import Count, Natural, NonNegative, Range, factory

Factor = Annotated[int, Range("a whole number of 2 or more", 2)]


@factory
def median(*, n_startup_trials: Natural, n_warmup_evals: Natural, interval_evals: Count) -> BasePruner:
    """Stop a trial whose best loss so far is above the median of the losses that others had at this point."""
    # Optuna counts from step 0, so its warm-up would be one evaluation shorter
    return MedianPruner(n_startup_trials, n_warmup_evals + 1, interval_evals)


@factory
def asha(*, min_evals: Count, reduction_factor: Factor) -> BasePruner:
    """Let the best 1/reduction_factor go on at min_evals, and of these at reduction_factor times that, and so on."""
    return SuccessiveHalvingPruner(min_evals, reduction_factor)


@factory
def hyperband(*, min_evals: Count, max_evals: Count, reduction_factor: Factor) -> BasePruner:
    """Divide the trials among several successive halvings, the first of which judges early and the last late."""
    if min_evals > max_evals:
        raise UserError(f"sweep.pruner.min_evals={min_evals} can't be more than its max_evals={max_evals}.")
    return HyperbandPruner(min_evals, max_evals, reduction_factor)


@factory
def patient(
    *, patience: Natural, min_delta: NonNegative, n_startup_trials: Natural, n_warmup_evals: Natural
) -> BasePruner:
    """PruningLogger by the median, but only a trial that has come to a halt.

    That's one whose last `patience` + 1 losses are all above its best before them, by more than `min_delta`.
    """
    judge = median(n_startup_trials=n_startup_trials, n_warmup_evals=n_warmup_evals, interval_evals=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # it's been that since 2021
        return PatientPruner(judge, patience, min_delta)


@factory
def none() -> BasePruner:
    """Never stop a trial."""
    return NopPruner()
