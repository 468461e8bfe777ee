"""What Hydra is told of the search before it composes anything: a sweeper, and a launcher for this machine.

Nothing here imports torch or Optuna, so that `--help`, `--cfg job` and the Tab key answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig

from minllm.errors import UserError
from minllm.schema.foreign import refuse_environment
from minllm.schema.overrides import key_of

OWN_SECTIONS = ("search", "sweep", "memory", "arms")
"""Sections of the configuration that lead the search, and are no part of a trial."""

WITHOUT_PROCESSES = ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins.hydra_joblib_launcher")
"""Launchers that run a trial in the search's own process, or several in one."""


def register() -> None:
    """Let `hydra/sweeper=pruning` and `hydra/launcher=processes` be chosen; conf/sweep.yaml does."""
    for group, name, plugin, node in (
        ("hydra/sweeper", "pruning", PruningSweeper, SweeperOptions),
        ("hydra/launcher", "processes", Processes, LauncherOptions),
    ):
        Plugins.instance().register(plugin)
        ConfigStore.instance().store(group=group, name=name, node=node, provider="minllm", replace=True)


@dataclass
class SweeperOptions:
    """`hydra.sweeper`: the options of Hydra's Optuna plugin that mean something here, by the same names."""

    _target_: str = "minllm.sweep.plugin.PruningSweeper"
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}])
    sampler: Any = MISSING
    n_trials: int = MISSING
    n_jobs: int = MISSING


@dataclass
class LauncherOptions:
    _target_: str = "minllm.sweep.plugin.Processes"


class RepeatedCrashes(Exception):
    """Trials crash one after the other: something is broken, and more of them would only hide it."""


def is_search_key(word: str) -> bool:
    """Whether an override configures the search and not its trials."""
    return key_of(word).replace("/", ".").partition(".")[0] in OWN_SECTIONS


def job(cfg: DictConfig) -> None:
    """What a launcher of Hydra's runs, on the machine that it has chosen: a trial, as the search has assigned it."""
    from minllm.sweep.trial import perform

    now = HydraConfig.get()
    perform(Path(now.sweep.dir), now.job.num, cfg.sweep.storage, cfg.sweep.get("attempt"))


class PruningSweeper(Sweeper):
    """Asks Optuna for trials, has a launcher run each, and tells Optuna what became of them.

    Args:
        sampler: the node of `hydra/sweeper/sampler`.
        n_trials: how many trials the study has in the end, those of earlier calls included.
        n_jobs: how many run at once.
    """

    def __init__(self, sampler: DictConfig, n_trials: int, n_jobs: int):
        for name, number in (("n_trials", n_trials), ("n_jobs", n_jobs)):
            if number < 1:
                raise UserError(f"hydra.sweeper.{name} must be a whole number of 1 or more, not {number}.")
        self.sampler, self.n_trials, self.n_jobs = sampler, n_trials, n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        if self.config.hydra.launcher._target_.startswith(WITHOUT_PROCESSES):
            raise UserError(
                f"hydra/launcher={self.config.hydra.runtime.choices['hydra/launcher']} gives a trial no process"
                " of its own, that could be held to its memory: choose hydra/launcher=processes, or submitit_slurm on"
                " a cluster."
            )
        refuse_environment(self.config.hydra)
        typed = " ".join(self.config.hydra.overrides.hydra)
        if self.config.hydra.launcher.get("setup") and "hydra.launcher.setup" not in typed:
            raise UserError("A file can't have a launcher run commands (hydra.launcher.setup). Type them.")
        from minllm.config.compose import refuse_unnamed_code
        from minllm.runs.find import named_keys
        from minllm.schema.building import build
        from minllm.schema.checking import allowed_packages, check_node

        refuse_unnamed_code(self.config, named_keys(arguments))  # before any of it is imported
        check_node(self.config.search, "search", allowed_packages(self.config))
        build(self.config.search).lead(self, arguments)


class Processes(Launcher):
    """A process for each trial on this machine, forked from one that has imported everything: see processes.py."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from minllm.sweep.processes import ForkServer

        self.server = ForkServer(
            Path(config.hydra.sweep.dir),
            config.sweep.storage,
            config.sweep.trial_minutes,
            config.hydra.sweeper.n_jobs,
        )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run trials to their ends, one after the other. Threads may call it side by side."""
        return [self._launch(initial_job_idx + i) for i in range(len(job_overrides))]

    def close(self) -> None:
        """End all trials that run."""
        self.server.close()

    def _launch(self, number: int) -> JobReturn:
        done = JobReturn(status=JobStatus.COMPLETED)
        try:
            self.server.run(number)
        except Exception as error:  # which whoever looks at the return value gets to see
            done.status, done.return_value = JobStatus.FAILED, error
        return done
