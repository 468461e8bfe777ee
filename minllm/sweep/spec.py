"""The specification of a search: the overrides of each trial, and the configuration they compose."""

from __future__ import annotations

import copy
import hashlib
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from optuna.study import Study

from minllm.config.compose import named_folders, resolve_config
from minllm.config.explain import explained
from minllm.errors import UserError, first_line
from minllm.model.build import build_shapes
from minllm.model.unused import refuse_unused
from minllm.runs.find import WATCHING
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.schema.foreign import SECTIONS_OF_SEARCH
from minllm.schema.overrides import format_value, key_of
from minllm.sweep.plugin import is_search_key
from minllm.sweep.space import Plan, Space
from minllm.training.preparation import budget_of

TRAINING = "minllm.tasks.train.train"
TRAINS_NEW_MODELS = "A search trains new models: leave out task= and resume=."

composing = threading.Lock()
"""Hydra composes one configuration at a time."""


class SearchSpec:
    """The search space and the configuration of each trial.

    Args:
        master: the configuration composed from the command line without its sweeps.
        overrides: the command line's overrides, without Hydra's own.
        context: Hydra's context, which composes the trials' configurations.

    Raises:
        UserError: there is nothing to search, or the search is not over new training runs.
    """

    def __init__(self, master: DictConfig, overrides: Sequence[str], context: HydraContext):
        self.master, self.context = master, context
        self._settled: dict[tuple[str, ...], DictConfig] = {}
        """The configuration that was composed last: composing takes a tenth of a second."""
        self._settling = threading.Lock()
        if master.task._target_ != TRAINING:
            raise UserError(TRAINS_NEW_MODELS)
        plan: Plan = build(master.search)
        plan = replace(plan, fixed={**master.sweep.trial, **plan.fixed})
        self.overrides = list(overrides)
        self.flags = named_folders(master.hydra.runtime)
        self.space = Space(plan, overrides, self.settled, context.config_loader)
        if not self.space.distributions:
            raise UserError(
                "There's nothing to search. Choose a space with search=<space>, or give a key several values, such as"
                " 'model.dim=choice(64,128)' or 'optim.lr=tag(log,interval(1e-4,1e-2))'."
            )
        for name in self.space.distributions:
            if is_search_key(name):
                raise UserError(
                    f"{name} configures the search itself, not its trials: give it a single value."
                )
        base = self.space.base
        for key in ("init_from", "branch_from"):
            if self.space.fixed.get(key) == "latest":  # it would resolve to a different run for each trial
                self.space.fixed[key] = format_value(base[key])
        if base.resume:
            raise UserError(TRAINS_NEW_MODELS)
        self._refusals: dict[str, str | None] = {}
        self._vocabulary: dict[str, int] = {}

    def refuse_another(self, study: Study) -> None:
        """Raise UserError if the study was started with other settings: their trials can't be compared."""
        space, sweep = self.space, self.master.sweep
        settings = {name: str(kind) for name, kind in space.distributions.items()}
        settings |= {name: value for name, value in space.fixed.items() if not is_search_key(name)}
        settings |= {"sweep.metric": sweep.metric, "sweep.trial_minutes": str(sweep.trial_minutes)}
        settings |= {
            "memory.limit": str(self.master.memory.limit),
            **{override: "" for override in space.deleted},
        }
        settings |= {name: str(values) for name, values in space.first_that_fits.items()}
        before = study.user_attrs.get("asks")
        if before is None:
            study.set_user_attr("asks", settings)
        elif not isinstance(before, dict):
            raise UserError(
                f"The study '{study.study_name}' is damaged: its recorded settings are {first_line(before)}. Give this"
                " search another name: sweep.name=<name>."
            )
        elif before != settings:
            key = next(key for key in {**before, **settings} if before.get(key) != settings.get(key))
            raise UserError(
                f"The study '{study.study_name}' was started with other settings: {key} was"
                f" {before.get(key, 'not set')}, and is now {settings.get(key, 'not set')}. Give this search another"
                " name: sweep.name=<name>."
            )

    def shown_overrides(self) -> list[str]:
        """Return the command line's overrides with secrets removed."""
        return without_storage([*self.flags, *self.overrides, *self.master.hydra.overrides.hydra])

    def composed(self, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration that Hydra composes from overrides, including its own and the search's sections."""
        with composing, explained():
            return self.context.config_loader.load_sweep_config(self.master, list(overrides))

    def settled(self, overrides: Sequence[str]) -> DictConfig:
        """Return a trial's configuration, as `python run.py <overrides>` would run it."""
        key = tuple(overrides)
        with self._settling:
            if key not in self._settled:
                composed = self.composed(overrides)
                self._settled = {key: trial_config(composed, overrides, composed.hydra.runtime)}
            return copy.deepcopy(self._settled[key])  # the caller may change it

    def refusal(self, values: Mapping[str, Any]) -> str | None:
        """Return why a combination of values can't be built; None if it can. No memory is allocated."""
        why = self.space.misfit(values)
        if why is not None:
            return why
        overrides = self.space.overrides(values)
        key = " ".join(overrides)
        if key not in self._refusals:
            self._refusals[key] = self._refusal(overrides)
        return self._refusals[key]

    def _refusal(self, overrides: Sequence[str]) -> str | None:
        try:
            cfg = self.settled(overrides)
            validate(cfg)
            settings, schedule = build(cfg.train), build(cfg.schedule)
            model = build_shapes(cfg, self._vocabulary_of(cfg.tokenizer))
            refuse_unused(cfg)
            if settings.flops is None:  # counting FLOPs takes a second or two
                schedule.check(budget_of(settings, model, cfg.data.seq_len).total_steps)
        except UserError as error:
            return str(error)
        return None

    def _vocabulary_of(self, tokenizer: DictConfig) -> int:
        key = OmegaConf.to_yaml(tokenizer)
        if key not in self._vocabulary:
            self._vocabulary[key] = build(tokenizer).vocab_size
        return self._vocabulary[key]


def trial_config(composed: DictConfig, overrides: Sequence[str], runtime: DictConfig) -> DictConfig:
    """Return the composed configuration without the search's own sections: that of an ordinary run."""
    own = OmegaConf.masked_copy(
        composed, [key for key in composed if key not in (*SECTIONS_OF_SEARCH, "hydra")]
    )
    cfg = resolve_config(own, [override for override in overrides if not is_search_key(override)], runtime)
    OmegaConf.set_struct(cfg, False)
    cfg.choices = {
        group: choice
        for group, choice in cfg.choices.items()
        if group.split("/")[0] not in SECTIONS_OF_SEARCH
    }
    OmegaConf.set_struct(cfg, True)
    return cfg


def command_line(hydra: DictConfig, words: Sequence[str]) -> str:
    """Return the command line of a search, with Hydra's own overrides and with secrets removed.

    Args:
        hydra: the `hydra` section of its configuration.
        words: the other overrides.
    """
    overrides = [*named_folders(hydra.runtime), *words, *hydra.overrides.hydra]
    return shlex.join(["python", "sweep.py", *without_storage(overrides)])


def without_storage(overrides: Sequence[str]) -> list[str]:
    """Return overrides without the database's URL, which may contain a password."""
    named = ("sweep", "sweep.storage")
    return ["sweep.storage=<database>" if key_of(override) in named else override for override in overrides]


def fingerprint(cfg: DictConfig) -> str:
    """Return a hash that is equal for configurations that compute the same, however they were typed."""
    plain = {name: value for name, value in resolved(cfg).items() if name not in WATCHING}
    text = OmegaConf.to_yaml(OmegaConf.create(plain), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolved(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)
