"""Whole searches without a process: trials don't run, and their outcomes are there at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import optuna
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from minllm.runs.outcome import Outcome, write
from minllm.sweep.store import open_study
from minllm.sweep.trial import Assignment
from tests.specs import composed

LITTLE = ("tokenizer=bytes", "data.train_stories=32", "data.val_stories=2")
"""A corpus that is encoded at once."""


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


def search_at_once(
    outcome_of: Callable[[DictConfig], Outcome], *words: str
) -> tuple[optuna.Study, list[DictConfig]]:
    """Search in the current folder as `python sweep.py <words>` would, and return the study and what was launched."""
    Plugins.instance().register(Instant)
    node = {"_target_": "tests.instant.Instant"}
    ConfigStore.instance().store(group="hydra/launcher", name="instant", node=node, replace=True)
    Instant.outcome_of, Instant.launched = staticmethod(outcome_of), []
    words = (*LITTLE, *words)
    with composed(*words, "hydra/launcher=instant", "sweep.keep_checkpoints=all") as (master, context):
        sweeper = Plugins.instance().instantiate_sweeper(
            config=master, hydra_context=context, task_function=lambda cfg: None
        )
        sweeper.sweep([word for word in words if not word.startswith("hydra")])
    study = open_study("a-search", None, Path("outputs/sweeps/a-search"), sampler=None, pruner=None)
    return study, Instant.launched
