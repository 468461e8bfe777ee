"""Searches for tests: as Hydra composes them, and spaces without anything around them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from minllm.config import CONF, compose
from minllm.sweep.outcome import Outcome, write
from minllm.sweep.plugin import register
from minllm.sweep.question import Question
from minllm.sweep.sampling import make_sampler
from minllm.sweep.space import Plan, Space
from minllm.sweep.store import open_study
from minllm.sweep.trial import Assignment

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
def question(*words: str) -> Iterator[Question]:
    """What `python sweep.py <words>` would ask."""
    with composed(*words) as (master, context):
        yield Question(master, [word for word in words if not word.startswith("hydra")], context)


def plan(params: dict[str, Any] | None = None, **parts: Any) -> Plan:
    empty: dict[str, Any] = {"fixed": {}, "when": {}, "multiples": {}, "first_that_fits": {}}
    return Plan(params=params or {}, **{**empty, **parts})


def space(*typed: str, **parts: Any) -> Space:
    return Space(plan(**parts), typed, compose)


def study_of(sampler: Any, space: Space, refusal=lambda values: None) -> optuna.Study:
    return optuna.create_study(sampler=make_sampler(sampler, space, refusal))


# ---- whole searches, without processes ---------------------------------------------------------------


class Instant(Launcher):
    """Runs no trial, and leaves the outcome at once that a test gives for its configuration."""

    outcome_of: Callable[[DictConfig], Outcome]
    launched: list[DictConfig]

    def setup(self, *, hydra_context, task_function, config) -> None:
        self.folder = Path(config.hydra.sweep.dir)

    def launch(self, job_overrides, initial_job_idx) -> list[JobReturn]:
        assignment = json.loads(Assignment.file(self.folder, initial_job_idx).read_text())
        cfg = OmegaConf.create(assignment["config"])
        Instant.launched.append(cfg)
        run_dir = Path(assignment["run_dir"])
        run_dir.mkdir(parents=True)
        write(Instant.outcome_of(cfg), run_dir, assignment["attempt"])
        return [JobReturn(status=JobStatus.COMPLETED)]


def searched(
    outcome_of: Callable[[DictConfig], Outcome], *words: str
) -> tuple[optuna.Study, list[DictConfig]]:
    """Search in the current folder as `python sweep.py <words>` would, and return the study and what was launched."""
    Plugins.instance().register(Instant)
    node = {"_target_": "tests.questions.Instant"}
    ConfigStore.instance().store(group="hydra/launcher", name="instant", node=node, replace=True)
    Instant.outcome_of, Instant.launched = staticmethod(outcome_of), []
    with composed(*words, "hydra/launcher=instant", "sweep.keep_checkpoints=all") as (master, context):
        sweeper = Plugins.instance().instantiate_sweeper(
            config=master, hydra_context=context, task_function=lambda cfg: None
        )
        sweeper.sweep([word for word in words if not word.startswith("hydra")])
    study = open_study("a-search", None, Path("outputs/sweeps/a-search"), sampler=None, pruner=None)
    return study, Instant.launched
