"""Searches for tests: as Hydra composes them, and spaces without anything around them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import optuna
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from minllm.config.compose import compose
from minllm.schema.groups import CONF
from minllm.sweep.plugin import register
from minllm.sweep.sampling import make_sampler
from minllm.sweep.space import Plan, Space
from minllm.sweep.spec import SearchSpec

optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextlib.contextmanager
def composed(*words: str) -> Iterator[tuple[DictConfig, HydraContext]]:
    """A search's configuration, and the Hydra that composes those of its trials."""
    register()
    for name, made in (("search_words", "a-search"), ("choice_words", "")):
        OmegaConf.register_resolver(name, lambda made=made: made, replace=True)
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), job_name="sweep"):
            loader = GlobalHydra.instance().config_loader()
            master = loader.load_configuration("sweep", list(words), RunMode.MULTIRUN)
            yield master, HydraContext(config_loader=loader, callbacks=Callbacks())
    finally:
        GlobalHydra.instance().hydra = outer


@contextlib.contextmanager
def spec(*words: str) -> Iterator[SearchSpec]:
    """What `python sweep.py <words>` would ask."""
    with composed(*words) as (master, context):
        yield SearchSpec(master, [word for word in words if not word.startswith("hydra")], context)


def plan(params: dict[str, Any] | None = None, **parts: Any) -> Plan:
    empty: dict[str, Any] = {"fixed": {}, "when": {}, "multiples": {}, "first_that_fits": {}}
    return Plan(params=params or {}, **{**empty, **parts})


def space(*typed: str, **parts: Any) -> Space:
    return Space(plan(**parts), typed, compose)


def study_of(sampler: Any, space: Space, refusal=lambda values: None) -> optuna.Study:
    return optuna.create_study(sampler=make_sampler(sampler, space, refusal))
