"""Parameter importance by Optuna's PED-ANOVA, which needs no other package.

It measures what distinguishes the best trials from all of them. The result is stable if at least five trials count as
the best, so in a small search a larger share than the usual tenth does.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from minllm.schema.overrides import short_names
from minllm.sweep.report.trials import state_of, varying


def importances(study: optuna.Study) -> dict[str, float]:
    """Return each parameter's share, keyed by full name, largest first; {} with too few complete trials."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if state_of(trial) == "complete"]
    names = varying(complete)
    if not names or len({trial.value for trial in complete}) < 2:
        return {}
    shorts = short_names(varying(study.get_trials(deepcopy=False)))
    with quietly():
        shares = get_param_importances(with_short_names(study), evaluator=evaluator(len(complete)))
    return dict(sorted(((name, shares[shorts[name]]) for name in names), key=lambda pair: -pair[1]))


def evaluator(complete: int) -> PedAnovaImportanceEvaluator:
    return PedAnovaImportanceEvaluator(target_quantile=share_called_best(complete))


def share_called_best(complete: int) -> float:
    """Return the share of the complete trials that counts as the best."""
    return min(0.5, max(0.1, 5 / complete))


def with_short_names(study: optuna.Study) -> optuna.Study:
    """Return a copy of a study with short parameter names, and with values only for trials that measured one.

    Otherwise Optuna would count a reused value twice, and treat the value substituted for a pruned trial's as real.
    """
    trials = study.get_trials(deepcopy=False)
    names = short_names(varying(trials))
    with quietly():
        copy = optuna.create_study(study_name=study.study_name, direction=study.direction)
    copy.add_trials(_with_short_names(trial, names) for trial in trials)
    return copy


def _with_short_names(trial: FrozenTrial, names: Mapping[str, str]) -> FrozenTrial:
    if state_of(trial) != "complete":
        return create_trial(state=TrialState.FAIL)  # a placeholder, so that the trial numbers stay the same
    had = [(name, short) for name, short in names.items() if name in trial.params]
    return create_trial(
        value=trial.value,
        params={short: trial.params[name] for name, short in had},
        distributions={short: trial.distributions[name] for name, short in had},
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence Optuna's messages about the copied study and about few trials; the report shows how many there are."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
