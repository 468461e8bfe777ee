"""Which parameters decided the value: Optuna's PED-ANOVA, which needs no other package.

It asks what sets the best trials apart from all of them. Its answer is steady where at least five trials are called
the best, so a small search calls more of its trials that than the usual tenth.
"""

from __future__ import annotations

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from minllm.sweep.trials import short_names, state_of, varying


def importances(study: optuna.Study) -> dict[str, float]:
    """Return each parameter's share by its full name, the largest first; {} where too few trials tell."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if state_of(trial) == "complete"]
    names = varying(complete)
    if len(complete) < 2 or not names:
        return {}
    shorts = short_names(varying(study.get_trials(deepcopy=False)))
    shares = get_param_importances(retold(study), evaluator=evaluator(len(complete)))
    return dict(sorted(((name, shares[shorts[name]]) for name in names), key=lambda pair: -pair[1]))


def share_called_best(complete: int) -> float:
    """Return which share of the complete trials is compared with all of them."""
    return min(0.5, max(0.1, 5 / complete))


def evaluator(complete: int) -> PedAnovaImportanceEvaluator:
    return PedAnovaImportanceEvaluator(target_quantile=share_called_best(complete))


def retold(study: optuna.Study) -> optuna.Study:
    """Return a copy of a study with short names, and values only where a trial found one itself.

    Optuna would count a value that was taken from an earlier trial twice. One that stands in for a pruned trial's it
    takes for real, and may call the best.
    """
    trials = study.get_trials(deepcopy=False)
    names = short_names(varying(trials))
    copy = _silently_created(study)
    for trial in trials:
        # an ended trial without parameters keeps the place of what isn't drawn, so that the numbers stay
        copy.add_trial(
            create_trial(
                value=trial.value,
                params={short: trial.params[name] for name, short in names.items() if name in trial.params},
                distributions={
                    short: trial.distributions[name] for name, short in names.items() if name in trial.params
                },
            )
            if state_of(trial) == "complete"
            else create_trial(state=TrialState.FAIL)
        )
    return copy


def _silently_created(study: optuna.Study) -> optuna.Study:
    """Return an empty study; Optuna would announce it to a user who asked for none."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(study_name=study.study_name, direction=study.direction)
    finally:
        optuna.logging.set_verbosity(verbosity)
