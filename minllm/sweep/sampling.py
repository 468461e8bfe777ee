"""Between Optuna's samplers and the space: what they propose is only what can be built and hasn't been refused.

A sampler knows single parameters; whether a combination makes a model is known here. Refused combinations are drawn
again within the same trial, so that they never become trials.
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
"""Draws for one trial after which a space counts as holding next to nothing that can be built."""

OWN_GUESSES = 5
"""Draws after which chance helps: a sampler that is sure of its best guess makes the same guess again."""

NEEDS = {"GPSampler": ("scipy",), "QMCSampler": ("scipy",), "CmaEsSampler": ("cmaes",)}
"""What Optuna imports for a sampler only when it's asked for the first values that aren't drawn by chance."""

Refusal = Callable[[dict[str, Any]], str | None]
"""Says why a combination can't be built; None if it can."""


def make_sampler(chosen: Any, space: Space, refusal: Refusal) -> BaseSampler:
    """Return the sampler that was chosen (`hydra/sweeper/sampler`), held to what can be built."""
    if isinstance(chosen, functools.partial) and chosen.func is optuna.samplers.GridSampler:
        return Grid(space, refusal, chosen.keywords.get("seed"))
    for package in NEEDS.get(type(chosen).__name__, ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"This hydra/sweeper/sampler needs the package {package}: pip install {package}, or take tpe."
            )
    return Buildable(chosen, space, refusal)


def refuse_hopeless(space: Space, sampler: Buildable | Grid) -> None:
    """Raise UserError where nothing in the space can be built, as far as drawing at random tells."""
    study = optuna.create_study()  # in memory
    if isinstance(sampler, Grid):
        if sampler.next(study) is None:
            last = [space.combination(space.size() - 1)] if space.size() else []
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
        # CMA-ES would say for each draw that it leaves choices to chance
        inner._warn_independent_sampling = False
        self.chance, self.by_chance = random.Random(0), optuna.samplers.RandomSampler(seed=0)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self.space.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        kept = already_chosen(trial)
        guess: dict[str, Any] = {}
        for attempt in range(ATTEMPTS):
            if attempt < OWN_GUESSES:
                values = guess = self._guess(study, trial, kept)
            else:
                values = self._near(guess, (attempt - OWN_GUESSES + 1) / 100, study, trial, kept)
            why = self.refusal(values)
            if why is None:
                return values
        raise UserError(
            f"None of {ATTEMPTS} combinations drawn from this space can be built, so there's nothing to search."
            f" The last was refused with: {why}"
        )

    def _guess(self, study: Study, trial: FrozenTrial, kept: dict[str, Any]) -> dict[str, Any]:
        """Return what the other sampler proposes."""
        search_space = self.inner.infer_relative_search_space(study, trial)
        together = self.inner.sample_relative(study, trial, search_space)
        return self._completed({**together, **kept}, self.inner, study, trial)

    def _near(
        self, guess: dict[str, Any], share: float, study: Study, trial: FrozenTrial, kept: dict[str, Any]
    ) -> dict[str, Any]:
        """Return a guess of which chance has drawn a share anew: all of it, in the end."""
        unchanged = {name: value for name, value in guess.items() if self.chance.random() >= share}
        return self._completed({**unchanged, **kept}, self.by_chance, study, trial)

    def _completed(
        self, known: dict[str, Any], sampler: BaseSampler, study: Study, trial: FrozenTrial
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, kind in self.space.distributions.items():
            if self.space.asks_for(name, values):
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
            # CMA-ES learns from the value, and needn't say that it does without the rest
            warnings.filterwarnings("ignore", "Constraints have been set")
            self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()
        self.by_chance.reseed_rng()
        self.chance = random.Random()

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
        self.space, self.refusal, self.seed = space, refusal, seed
        self.upcoming = self._in_order()
        self.first: dict[str, Any] | None = next(self.upcoming, None)
        self.tried: set[str] = set()
        self.known = 0  # trials at the study's beginning that have ended, and are among those tried

    def next(self, study: Study) -> dict[str, Any] | None:
        """Return the combination to try now; None if all have been."""
        tried = self._tried(study)
        while self.first is not None and (_key(self.first) in tried or self.refusal(self.first) is not None):
            self.first = next(self.upcoming, None)
        return self.first

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self.space.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        kept = already_chosen(trial)
        if not kept:
            return self.next(study) or {}
        tried = self._tried(study)  # cut off when only a part of it was on disk
        fitting = (one for one in self._in_order() if kept.items() <= one.items())
        return next((one for one in fitting if _key(one) not in tried and self.refusal(one) is None), kept)

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, kind: BaseDistribution) -> Any:
        raise RuntimeError(f"A grid has no value for {name}: ask `next` first whether anything is left.")

    def _in_order(self) -> Iterator[dict[str, Any]]:
        size = self.space.size()
        places = range(size) if self.seed is None else shuffled(size, self.seed)
        return map(self.space.combination, places)

    def _tried(self, study: Study) -> set[str]:
        """Return what was tried or waits for it; a long study's trials aren't all looked at each time."""
        trials = study.get_trials(deepcopy=False)[self.known :]
        for trial in itertools.takewhile(lambda one: one.state.is_finished(), trials):
            self.tried.add(_key(trial.params))
            self.known += 1
        return self.tried | {_key(already_chosen(trial)) for trial in trials}


def already_chosen(trial: FrozenTrial) -> dict[str, Any]:
    """Return the values of a trial that was put back, or was given some when it was enqueued."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def shuffled(size: int, seed: int) -> Iterator[int]:
    """Return the numbers below `size` in an order of chance, of which only as many are held as were asked for."""
    moved: dict[int, int] = {}
    chance = random.Random(seed)
    for place in range(size):
        other = chance.randrange(place, size)
        yield moved.get(other, other)
        moved[other] = moved.pop(place, place)


def _key(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
