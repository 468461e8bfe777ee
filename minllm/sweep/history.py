"""The trials of a study so far, compared by resolved configuration rather than by overrides."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from minllm.sweep.spec import SearchSpec, fingerprint


class History:
    """Looks up earlier trials with the same configuration or the same parameters."""

    def __init__(self, study: optuna.Study, spec: SearchSpec):
        self.study, self.spec, self.space = study, spec, spec.space
        self._identities: dict[tuple[str, ...], str] = {}

    def first_that_fits(self, values: Mapping[str, Any]) -> tuple[list[str], DictConfig]:
        """Return a trial's overrides and configuration, with the first of the plan's alternatives that may fit."""
        overrides = self._overrides_that_fit(values)
        return overrides, self.spec.settled(overrides)

    def identity(self, overrides: Sequence[str]) -> str:
        """Return the fingerprint of the configuration that a trial's overrides compose."""
        key = tuple(overrides)
        if key not in self._identities:
            self._identities[key] = fingerprint(self.spec.settled(overrides))
        return self._identities[key]

    def smaller_to_try(self) -> dict[str, Any] | None:
        """Return the parameters of a trial that ran out of memory and has an untried alternative in the plan, or None.

        They are read from the study each time, so that none is lost when a search is interrupted or ends.
        """
        if not self.space.first_that_fits:
            return None
        trials = self.study.get_trials(deepcopy=False)
        under_way = [trial.params for trial in trials if not trial.state.is_finished()]
        ran_out = (trial for trial in trials if trial.user_attrs.get("smaller_may_fit"))
        left = (trial.params for trial in ran_out if trial.params not in under_way)
        return next(
            (values for values in left if not self._same_configuration(self._overrides_that_fit(values))),
            None,
        )

    def duplicate_of(self, trial: optuna.Trial, identity: str, running: Container[int]) -> FrozenTrial | None:
        """Return another trial with the same fingerprint that has a result or is running, or None.

        Args:
            identity: the trial's fingerprint.
            running: the numbers of the running trials.
        """
        for candidate in self._with(identity):
            has_verdict = candidate.state in (TrialState.COMPLETE, TrialState.PRUNED)
            if candidate.number != trial.number and (has_verdict or candidate.number in running):
                return candidate
        return None

    def _overrides_that_fit(self, values: Mapping[str, Any]) -> list[str]:
        names = list(self.space.first_that_fits)
        for chosen in itertools.product(*self.space.first_that_fits.values()):
            overrides = self.space.overrides({**values, **dict(zip(names, chosen))})
            if not any(
                trial.user_attrs.get("memory_ran_out") for trial in self._same_configuration(overrides)
            ):
                break
        return overrides

    def _same_configuration(self, overrides: Sequence[str]) -> list[FrozenTrial]:
        return self._with(self.identity(overrides))

    def _with(self, identity: str) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.user_attrs.get("fingerprint") == identity]
