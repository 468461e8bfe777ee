"""Pruners, which decide when a search stops a trial that is worse than others.

A trial is evaluated `train.evals` times at even intervals and reports its loss after the k-th evaluation as step k. A
step here is therefore an evaluation, which is also the unit of the papers' resources.
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
    """Stop a trial whose best loss so far is above the median loss of the other trials at this evaluation."""
    # Optuna counts from step 0, so its warm-up would be one evaluation shorter
    return MedianPruner(n_startup_trials, n_warmup_evals + 1, interval_evals)


@factory
def asha(*, min_evals: Count, reduction_factor: Factor) -> BasePruner:
    """Asynchronous successive halving.

    The best 1/reduction_factor of the trials continue after min_evals evaluations, the best 1/reduction_factor of
    those after reduction_factor * min_evals, and so on.
    """
    return SuccessiveHalvingPruner(min_evals, reduction_factor)


@factory
def hyperband(*, min_evals: Count, max_evals: Count, reduction_factor: Factor) -> BasePruner:
    """Hyperband: divide the trials among several successive halvings that start pruning at different evaluations.

    Raises:
        UserError: min_evals is more than max_evals.
    """
    if min_evals > max_evals:
        raise UserError(f"sweep.pruner.min_evals={min_evals} can't be more than its max_evals={max_evals}.")
    return HyperbandPruner(min_evals, max_evals, reduction_factor)


@factory
def patient(
    *, patience: Natural, min_delta: NonNegative, n_startup_trials: Natural, n_warmup_evals: Natural
) -> BasePruner:
    """Prune by the median, but only a trial that has stopped improving.

    That is one whose last `patience` + 1 losses all exceed its best loss before them by more than `min_delta`.
    """
    judge = median(n_startup_trials=n_startup_trials, n_warmup_evals=n_warmup_evals, interval_evals=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # experimental since 2021
        return PatientPruner(judge, patience, min_delta)


@factory
def none() -> BasePruner:
    """Never stop a trial."""
    return NopPruner()
