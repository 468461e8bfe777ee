"""Wrappers around Optuna's samplers that propose only combinations that can be built.

A sampler only knows single parameters, so a proposal may not describe a valid model. Rejected combinations are drawn
again within the same trial, so they never become trials.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from minllm.errors import UserError
from minllm.sweep.space import Space

ATTEMPTS = 300
"""After this many draws for one trial, the space is assumed to contain nothing that can be built."""

OWN_GUESSES = 5
"""Draws after which values are randomized, because a confident sampler repeats its best guess."""

NEEDS = {"GPSampler": ("scipy",), "QMCSampler": ("scipy",), "CmaEsSampler": ("cmaes",)}
"""Packages that Optuna imports only once a sampler proposes its first non-random values."""

Refusal = Callable[[dict[str, Any]], str | None]
"""Returns why a combination can't be built; None if it can."""


def make_sampler(chosen: Any, space: Space, refusal: Refusal) -> BaseSampler:
    """Wrap the chosen `hydra/sweeper/sampler` so that it proposes only what can be built.

    Raises:
        UserError: the sampler needs a package that isn't installed.
    """
    if isinstance(chosen, functools.partial) and chosen.func is optuna.samplers.GridSampler:
        return Grid(space, refusal, chosen.keywords.get("seed"))
    for package in NEEDS.get(type(chosen).__name__, ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"This hydra/sweeper/sampler needs the package {package}: run pip install {package}, or use tpe."
            )
    return Buildable(chosen, space, refusal)


def refuse_hopeless(space: Space, sampler: Buildable | Grid) -> None:
    """Raise UserError if nothing in the space can be built, judging by random draws or by the whole grid."""
    study = optuna.create_study()  # in memory
    if isinstance(sampler, Grid):
        if sampler.next(study) is None:
            last = [space.combination(space.size() - 1)] if space.size() else []
            why = [f" The last was rejected with: {sampler.refusal(values)}" for values in last]
            raise UserError(
                f"None of the combinations can be built, so there's nothing to search.{''.join(why)}"
            )
        return
    study.sampler = Buildable(optuna.samplers.RandomSampler(seed=0), space, sampler.refusal)
    ask(study, space)


def ask(study: Study, space: Space) -> tuple[Trial, dict[str, Any]]:
    """Return the next trial, new or queued, and its values."""
    trial = study.ask()
    values: dict[str, Any] = {}
    for name, kind in space.distributions.items():
        if space.is_sampled(name, values):
            values[name] = suggest(trial, name, kind)
    return trial, values


def suggest(trial: Trial, name: str, kind: BaseDistribution) -> Any:
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(name, kind.choices)
    if isinstance(kind, IntDistribution):
        return trial.suggest_int(name, kind.low, kind.high, step=kind.step, log=kind.log)
    return trial.suggest_float(name, kind.low, kind.high, step=kind.step, log=kind.log)


class Buildable(BaseSampler):
    """Wraps a sampler and queries it until it proposes a combination that can be built.

    All values of a trial are sampled at once (Optuna's "relative" sampling), because only a whole combination can be
    checked; the inner sampler is queried in its own way.
    """

    def __init__(self, inner: BaseSampler, space: Space, refusal: Refusal):
        self.inner, self.space, self.refusal = inner, space, refusal
        # CMA-ES would warn at each draw that it samples categorical parameters at random
        inner._warn_independent_sampling = False
        self.chance, self.by_chance = random.Random(0), optuna.samplers.RandomSampler(seed=0)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self.space.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        queued = queued_values(trial)
        guess: dict[str, Any] = {}
        for attempt in range(ATTEMPTS):
            if attempt < OWN_GUESSES:
                values = guess = self._guess(study, trial, queued)
            else:
                values = self._perturbed(guess, (attempt - OWN_GUESSES + 1) / 100, study, trial, queued)
            why = self.refusal(values)
            if why is None:
                return values
        raise UserError(
            f"None of {ATTEMPTS} combinations drawn from this space can be built, so there's nothing to search."
            f" The last was rejected with: {why}"
        )

    def _guess(self, study: Study, trial: FrozenTrial, queued: dict[str, Any]) -> dict[str, Any]:
        """Return what the inner sampler proposes."""
        search_space = self.inner.infer_relative_search_space(study, trial)
        proposed = self.inner.sample_relative(study, trial, search_space)
        return self._completed({**proposed, **queued}, self.inner, study, trial)

    def _perturbed(
        self, guess: dict[str, Any], share: float, study: Study, trial: FrozenTrial, queued: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the guess with a `share` of its values drawn again at random; the share grows to all of them."""
        unchanged = {name: value for name, value in guess.items() if self.chance.random() >= share}
        return self._completed({**unchanged, **queued}, self.by_chance, study, trial)

    def _completed(
        self, known: dict[str, Any], sampler: BaseSampler, study: Study, trial: FrozenTrial
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, kind in self.space.distributions.items():
            if self.space.is_sampled(name, values):
                values[name] = (
                    known[name] if name in known else sampler.sample_independent(study, trial, name, kind)
                )
        return values

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, kind: BaseDistribution) -> Any:
        return self.inner.sample_independent(study, trial, name, kind)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: list[float] | None
    ) -> None:
        with warnings.catch_warnings():
            # CMA-ES learns from the value, so its warning that it ignores constraints doesn't matter
            warnings.filterwarnings("ignore", "Constraints have been set")
            self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()
        self.by_chance.reseed_rng()
        self.chance = random.Random()

    @property
    def ignores_pruned(self) -> bool:
        """Whether this sampler ignores pruned trials."""
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
    """Proposes each combination that satisfies the conditions and can be built once, shuffled if there is a seed."""

    ignores_pruned = False

    def __init__(self, space: Space, refusal: Refusal, seed: int | None):
        self.space, self.refusal, self.seed = space, refusal, seed
        self.upcoming = self._in_order()
        self.first: dict[str, Any] | None = next(self.upcoming, None)
        self.tried: set[str] = set()
        self.known = 0  # leading trials of the study that have ended and are in `tried`

    def next(self, study: Study) -> dict[str, Any] | None:
        """Return the next combination to try; None if all have been tried."""
        tried = self._tried(study)
        while self.first is not None and (_key(self.first) in tried or self.refusal(self.first) is not None):
            self.first = next(self.upcoming, None)
        return self.first

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self.space.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        queued = queued_values(trial)
        if not queued:
            return self.next(study) or {}
        tried = self._tried(study)  # this trial was interrupted when only some of its values were on disk
        fitting = (values for values in self._in_order() if queued.items() <= values.items())
        return next(
            (values for values in fitting if _key(values) not in tried and self.refusal(values) is None),
            queued,
        )

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, kind: BaseDistribution) -> Any:
        raise RuntimeError(
            f"The grid has no value for {name}: call `next` first to see whether anything is left."
        )

    def _in_order(self) -> Iterator[dict[str, Any]]:
        size = self.space.size()
        indices = range(size) if self.seed is None else shuffled(size, self.seed)
        return map(self.space.combination, indices)

    def _tried(self, study: Study) -> set[str]:
        """Return the keys of all combinations tried or queued; finished trials are read only once."""
        trials = study.get_trials(deepcopy=False)[self.known :]
        for trial in itertools.takewhile(lambda trial: trial.state.is_finished(), trials):
            self.tried.add(_key(trial.params))
            self.known += 1
        return self.tried | {_key(queued_values(trial)) for trial in trials}


def queued_values(trial: FrozenTrial) -> dict[str, Any]:
    """Return the values that a queued trial already has."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def shuffled(size: int, seed: int) -> Iterator[int]:
    """Yield the numbers below `size` in random order; memory grows only with how many were drawn."""
    moved: dict[int, int] = {}
    chance = random.Random(seed)
    for place in range(size):
        drawn = chance.randrange(place, size)
        yield moved.get(drawn, drawn)
        moved[drawn] = moved.pop(place, place)


def _key(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
