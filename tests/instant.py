"""Whole searches without a process: trials don't run, and their outcomes are there at once."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import optuna
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

import minllm.model.size
from minllm.runs.outcome import Outcome, write
from minllm.schema.overrides import quoted
from minllm.sweep.spec import SearchSpec
from minllm.sweep.store import open_study
from minllm.sweep.trial import Assignment
from minllm.verdict.sequential import VerdictSearch
from tests.specs import composed

T = TypeVar("T")

LITTLE = ("tokenizer=bytes", "data.train_stories=32", "data.val_stories=2")
"""A corpus that is encoded at once."""


SMALL = (
    "model.dim=16",
    "model.n_layers=2",
    "model.attn.n_heads=2",
    "model.attn.n_kv_heads=1",
    "data.seq_len=32",
)


class Instant(Launcher):
    """Runs no trial, and leaves the outcome at once that a test gives for its configuration."""

    outcome_of: Callable[[DictConfig], Outcome]
    summary_of: Callable[[DictConfig], dict[str, Any]] | None = None
    """Returns what summary.json has, if anything reads it."""
    launched: list[DictConfig]
    stop_after: float = math.inf
    """After so many runs, whoever starts them presses Ctrl-C."""

    def setup(self, *, hydra_context, task_function, config) -> None:
        self.folder = Path(config.hydra.sweep.dir)

    def launch(self, job_overrides, initial_job_idx) -> list[JobReturn]:
        if len(Instant.launched) >= Instant.stop_after:
            raise KeyboardInterrupt
        assignment = json.loads(Assignment.file(self.folder, initial_job_idx).read_text())
        cfg = OmegaConf.create(assignment["config"])
        Instant.launched.append(cfg)
        run_dir = Path(assignment["run_dir"])
        run_dir.mkdir(parents=True)
        if Instant.summary_of is not None:
            (run_dir / "summary.json").write_text(json.dumps(Instant.summary_of(cfg)))
        write(Instant.outcome_of(cfg), run_dir, assignment["attempt"])
        return [JobReturn(status=JobStatus.COMPLETED)]


def register() -> None:
    """Make hydra/launcher=instant known."""
    Plugins.instance().register(Instant)
    node = {"_target_": "tests.instant.Instant"}
    ConfigStore.instance().store(group="hydra/launcher", name="instant", node=node, replace=True)


def search_at_once(
    outcome_of: Callable[[DictConfig], Outcome], *words: str
) -> tuple[optuna.Study, list[DictConfig]]:
    """Search in the current folder as `python sweep.py <words>` would, and return the study and what was launched."""
    register()
    Instant.outcome_of, Instant.launched = staticmethod(outcome_of), []
    words = (*LITTLE, *words)
    with composed(*words, "hydra/launcher=instant", "sweep.keep_checkpoints=all") as (master, context):
        sweeper = Plugins.instance().instantiate_sweeper(
            config=master, hydra_context=context, task_function=lambda cfg: None
        )
        sweeper.sweep([word for word in words if not word.startswith("hydra")])
    study = open_study("a-search", None, Path("outputs/sweeps/a-search"), sampler=None, pruner=None)
    return study, Instant.launched


def protocol_at_once(act: Callable[[Any, list[str]], T], *words: str) -> T:
    """Return what `act` makes of the sweeper and overrides of `python sweep.py <words>`, in the current folder."""
    register()
    Instant.launched = []
    typed = [quoted(word) for word in words]
    with composed(*typed, "hydra/launcher=instant") as (master, context):
        sweeper = Plugins.instance().instantiate_sweeper(
            config=master, hydra_context=context, task_function=lambda cfg: None
        )
        return act(sweeper, [word for word in typed if not word.startswith("hydra")])


@contextlib.contextmanager
def composed_once() -> Iterator[None]:
    """Compose and check the runs of an arm, and solve for its widths, once: all of its runs ask again."""
    widths: dict[str, DictConfig] = {}
    cfgs: dict[tuple[str, ...], DictConfig] = {}
    refusals: dict[tuple[str, ...], str | None] = {}
    sized, settled, refusal = minllm.model.size.sized, SearchSpec.settled, SearchSpec._refusal

    def sized_once(cfg: DictConfig) -> DictConfig:
        key = f"{cfg.size} {cfg.model}"
        if key not in widths:
            widths[key] = sized(cfg).model
        result = cfg.copy()
        result.model = widths[key]
        return result

    def settled_once(self: SearchSpec, overrides: Sequence[str]) -> DictConfig:
        varying = [word for word in overrides if re.fullmatch(VARYING, word)]
        key = tuple(word for word in overrides if word not in varying)
        if key not in cfgs:
            cfgs[key] = settled(self, key)
        cfg = cfgs[key].copy()
        cfg.typed = [*cfg.typed, *varying]
        for name, _, value in (word.partition("=") for word in varying):
            OmegaConf.update(cfg, name, json.loads(value))
        return cfg

    def refusal_once(self: SearchSpec, overrides: Sequence[str]) -> str | None:
        key = tuple(word for word in overrides if not re.fullmatch(r"(seed|optim\.lr)=\d[\d.e-]*", word))
        if key not in refusals:
            refusals[key] = refusal(self, overrides)
        return refusals[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minllm.model.size.sized", sized_once)
        patch.setattr(SearchSpec, "settled", settled_once)
        patch.setattr(SearchSpec, "_refusal", refusal_once)
        yield


VARYING = r"(seed|optim\.\w+|schedule\.warmup_steps)=\d[\d.e-]*"
"""What differs between the runs of an arm."""


@contextlib.contextmanager
def inquiry(*words: str) -> Iterator[VerdictSearch]:
    """What `python sweep.py search=verdict <words>` asks, with trials that end at once."""
    register()
    typed = [quoted(word) for word in ("search=verdict", *LITTLE, *SMALL, *words)]
    with composed(*typed, "hydra/launcher=instant") as (master, context):
        sweeper = Plugins.instance().instantiate_sweeper(
            config=master, hydra_context=context, task_function=lambda cfg: None
        )
        yield VerdictSearch(sweeper, [word for word in typed if not word.startswith("hydra")])


def complete(n_trials: int, seconds: float) -> list[optuna.trial.FrozenTrial]:
    """Return trials that are complete, of seeds from 0, each of which took as long."""
    return [
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE,
            value=1.0,
            params={"seed": seed},
            distributions={"seed": optuna.distributions.IntDistribution(0, 999)},
            user_attrs={"seconds": seconds},
        )
        for seed in range(n_trials)
    ]
