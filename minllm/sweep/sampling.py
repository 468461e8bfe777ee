"""Between Optuna's samplers and the space: what they propose is only what can be built and hasn't been refused.

A sampler knows single parameters; whether a combination makes a model is known here. Refused combinations are drawn
again within the same trial, so that they never become trials.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from minllm.errors import UserError
from minllm.sweep.space import Space

ATTEMPTS = 300
"""Draws for one trial after which a space counts as holding next to nothing that can be built."""

Refusal = Callable[[dict[str, Any]], str | None]
"""Says why a combination can't be built; None if it can."""


def make_sampler(chosen: Any, space: Space, refusal: Refusal) -> BaseSampler:
    """Return the sampler that was chosen (`hydra/sweeper/sampler`), held to what can be built."""
    if isinstance(chosen, functools.partial) and chosen.func is optuna.samplers.GridSampler:
        return Grid(space, refusal, chosen.keywords.get("seed"))
    return Buildable(chosen, space, refusal)


def refuse_hopeless(space: Space, sampler: Buildable | Grid) -> None:
    """Raise UserError where nothing in the space can be built, as far as drawing at random tells."""
    study = optuna.create_study()  # in memory
    if isinstance(sampler, Grid):
        if sampler.next(study) is None:
            last = sampler.combinations[-1:]
            why = [f" The last was refused with: {sampler.refusal(one)}" for one in last]
            raise UserError(
                f"None of the combinations can be built, so there's nothing to search.{''.join(why)}"
            )
        return
    study.sampler = Buildable(optuna.samplers.RandomSampler(seed=0), space, sampler.refusal)
    ask(study, space)


def ask(study: Study, space: Space) -> tuple[Trial, dict[str, Any]]:
    """Return the next trial and its values: a new one, or one that was put back."""
    trial = study.ask()
    values: dict[str, Any] = {}
    for name, kind in space.distributions.items():
        if space.asks_for(name, values):
            values[name] = suggest(trial, name, kind)
    return trial, values


def suggest(trial: Trial, name: str, kind: BaseDistribution) -> Any:
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(name, kind.choices)
    if isinstance(kind, IntDistribution):
        return trial.suggest_int(name, kind.low, kind.high, step=kind.step, log=kind.log)
    return trial.suggest_float(name, kind.low, kind.high, step=kind.step, log=kind.log)


class Buildable(BaseSampler):
    """Another sampler, asked again until it proposes a combination that can be built.

    Optuna asks for all values of a trial at once here (its "relative" sampling), since only together can they be
    judged; the other sampler is asked in the way that it knows.
    """

    def __init__(self, inner: BaseSampler, space: Space, refusal: Refusal):
        self.inner, self.space, self.refusal = inner, space, refusal

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self.space.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        for _ in range(ATTEMPTS):
            values = self._draw(study, trial)
            why = self.refusal(values)
            if why is None:
                return values
        raise UserError(
            f"None of {ATTEMPTS} combinations drawn from this space can be built, so there's nothing to search."
            f" The last was refused with: {why}"
        )

    def _draw(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        kept = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        together = self.inner.sample_relative(
            study, trial, self.inner.infer_relative_search_space(study, trial)
        )
        values: dict[str, Any] = {}
        for name, kind in self.space.distributions.items():
            if self.space.asks_for(name, values):
                known = kept if name in kept else together
                values[name] = (
                    known[name] if name in known else self.inner.sample_independent(study, trial, name, kind)
                )
        return values

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, kind: BaseDistribution) -> Any:
        return self.inner.sample_independent(study, trial, name, kind)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: list[float] | None
    ) -> None:
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()

    @property
    def is_blind_to_pruned(self) -> bool:
        """Whether pruned trials teach this sampler nothing."""
        return isinstance(
            self.inner,
            (
                optuna.samplers.GPSampler,
                optuna.samplers.NSGAIISampler,
                optuna.samplers.NSGAIIISampler,
                optuna.samplers.CmaEsSampler,
            ),
        )


class Grid(BaseSampler):
    """Every combination that the conditions leave and that can be built, once; in a seed's order, if there is one."""

    is_blind_to_pruned = False

    def __init__(self, space: Space, refusal: Refusal, seed: int | None):
        self.refusal = refusal
        self.combinations = list(space.grid())
        self.distributions = dict(space.distributions)
        if seed is not None:
            random.Random(seed).shuffle(self.combinations)

    def next(self, study: Study) -> dict[str, Any] | None:
        """Return the combination to try now; None if all have been."""
        tried = {_key(trial.params) for trial in study.get_trials(deepcopy=False)}
        untried = (one for one in self.combinations if _key(one) not in tried)
        return next((one for one in untried if self.refusal(one) is None), None)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.next(study) or {}

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, kind: BaseDistribution) -> Any:
        raise RuntimeError(f"A grid has no value for {name}: ask `next` first whether anything is left.")


def _key(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
