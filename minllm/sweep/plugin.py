"""Hydra plugins for the search: a sweeper, and a launcher for this machine.

Nothing here imports torch or Optuna, so that `--help`, `--cfg job` and tab completion respond at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig

from minllm.errors import UserError
from minllm.schema.foreign import SECTIONS_OF_SEARCH, refuse_environment
from minllm.schema.overrides import key_of

if TYPE_CHECKING:
    from minllm.sweep.processes import ForkServer

WITHOUT_PROCESSES = ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins.hydra_joblib_launcher")
"""Launchers that run trials in the search's own process, or several trials in one process."""


def register() -> None:
    """Register `hydra/sweeper=pruning` and `hydra/launcher=processes`, which conf/sweep.yaml selects."""
    for group, name, plugin, node in (
        ("hydra/sweeper", "pruning", PruningSweeper, SweeperOptions),
        ("hydra/launcher", "processes", Processes, LauncherOptions),
    ):
        Plugins.instance().register(plugin)
        ConfigStore.instance().store(group=group, name=name, node=node, provider="minllm", replace=True)


@dataclass
class SweeperOptions:
    """`hydra.sweeper`: the options of Hydra's Optuna plugin that apply here, under the same names."""

    _target_: str = "minllm.sweep.plugin.PruningSweeper"
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}])
    sampler: Any = MISSING
    n_trials: int = MISSING
    n_jobs: int | None = None


@dataclass
class LauncherOptions:
    _target_: str = "minllm.sweep.plugin.Processes"


class RepeatedCrashes(Exception):
    """Too many trials crashed in a row: something is broken, and more trials won't help."""


class NotSettled(Exception):
    """A verdict was reached in which a contest is inconclusive, or doesn't hold among all ideas."""


def is_search_key(override: str) -> bool:
    """Whether an override configures the search and not its trials."""
    return key_of(override).replace("/", ".").partition(".")[0] in SECTIONS_OF_SEARCH


def job(cfg: DictConfig) -> None:
    """Run the trial that the search has assigned; Hydra's launcher calls this on the machine it chose."""
    from minllm.sweep.trial import perform

    now = HydraConfig.get()
    perform(Path(now.sweep.dir), now.job.num, cfg.sweep.storage, cfg.sweep.get("attempt"))


class PruningSweeper(Sweeper):
    """Asks Optuna for trials, runs each with a launcher, and reports the outcomes to Optuna.

    Args:
        sampler: the node of `hydra/sweeper/sampler`.
        n_trials: total number of trials of the study, including those of earlier calls.
        n_jobs: number of trials that run at once; None leaves it to the search, and is 1 if that doesn't choose.
    """

    server: ForkServer | None = None
    """A server process that this search shares with others; without one, it starts its own."""

    def __init__(self, sampler: DictConfig, n_trials: int, n_jobs: int | None):
        for name, number in (("n_trials", n_trials), ("n_jobs", n_jobs)):
            if number is not None and number < 1:
                raise UserError(f"hydra.sweeper.{name} must be a whole number of 1 or more, not {number}.")
        self.sampler, self.n_trials = sampler, n_trials
        self.n_jobs, self.chooses_jobs = n_jobs or 1, n_jobs is None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        if self.config.hydra.launcher._target_.startswith(WITHOUT_PROCESSES):
            raise UserError(
                f"hydra/launcher={self.config.hydra.runtime.choices['hydra/launcher']} doesn't run each trial in its"
                " own process, so its memory can't be limited. Use hydra/launcher=processes, or submitit_slurm on a"
                " cluster."
            )
        refuse_environment(self.config.hydra)
        hydra_overrides = " ".join(self.config.hydra.overrides.hydra)
        if self.config.hydra.launcher.get("setup") and "hydra.launcher.setup" not in hydra_overrides:
            raise UserError(
                "hydra.launcher.setup runs shell commands, so it can't be set in a file. Type it on the command line."
            )
        from minllm.config.compose import refuse_unnamed_code
        from minllm.runs.find import named_keys
        from minllm.schema.building import build
        from minllm.schema.checking import allowed_packages, check_node

        refuse_unnamed_code(self.config, named_keys(arguments))  # before any of it is imported
        check_node(self.config.search, "search", allowed_packages(self.config))
        build(self.config.search).run(self, arguments)


class Processes(Launcher):
    """Runs each trial in its own process, forked from one that has already imported everything (see processes.py)."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.order = {
            "storage": config.sweep.storage,
            "minutes": config.sweep.trial_minutes,
            "processes": config.sweep.get("processes_per_trial", 1),
        }
        self.folder = config.hydra.sweep.dir

    def start(self, slots: int, shared: ForkServer | None) -> None:
        """Start the server process, unless the search shares one. It runs `slots` trials at a time."""
        from minllm.sweep.processes import ForkServer

        self.server, self.is_shared = shared or ForkServer(slots), shared is not None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run trials one after the other and wait for them. Several threads may call it at once."""
        return [self._launch(initial_job_idx + i) for i in range(len(job_overrides))]

    def close(self, *, interrupted: bool) -> None:
        """Stop all running trials and the server, which others that share it don't need if they were interrupted."""
        if interrupted or not self.is_shared:
            self.server.close()

    def _launch(self, number: int) -> JobReturn:
        from minllm.sweep.processes import TrialOrder

        done = JobReturn(status=JobStatus.COMPLETED)
        try:
            self.server.run(TrialOrder(self.folder, number, **self.order))
        except Exception as error:  # raised again when the caller reads return_value
            done.status, done.return_value = JobStatus.FAILED, error
        return done
