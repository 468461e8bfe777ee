"""Support for Hydra's launchers other than our own, and the options that each needs for a search."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, read_write

from minllm.errors import UserError
from minllm.sweep.plugin import LauncherOptions, Processes
from minllm.sweep.processes import ForkServer
from minllm.sweep.store import parsed, secrets


def refuse_password(config: DictConfig) -> None:
    """Raise UserError if a launcher would write a database's password into its job files.

    An interpolated password such as `${oc.env:STUDY}` is allowed, because it is resolved only where it's used.
    """
    written = OmegaConf.to_container(config.sweep, resolve=False)["storage"]
    if config.hydra.launcher._target_ == LauncherOptions._target_ or written is None or "${" in written:
        return
    if secrets(parsed(written)):
        raise UserError(
            f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']} writes job options to files, so"
            " sweep.storage can't contain a password. Remove it from the URL and put it into ~/.pgpass, which"
            " PostgreSQL reads on each machine."
        )


def prepare(launcher: Launcher, processes: int = 1) -> None:
    """Make a launcher run each trial once, in processes of its own, without printing to the terminal.

    Args:
        processes: how many processes train a trial together.

    Raises:
        UserError: the launcher can't start so many, or was asked for another number.
    """
    refuse_without_slurm(launcher)
    share_trials(launcher, processes)
    # the plugins would log every job with all its overrides between the lines of the table
    logging.getLogger("hydra_plugins").setLevel(logging.WARNING)
    if "submitit_folder" in getattr(launcher, "params", {}):
        launcher.params.setdefault(
            "max_num_timeout", 0
        )  # or a trial that timed out would be restarted three times
    if hasattr(launcher, "ray_cfg"):
        import ray

        if not ray.is_initialized():  # here, because otherwise each launching thread would do it
            ray.init(
                **{"log_to_driver": False, **OmegaConf.to_container(launcher.ray_cfg.init, resolve=True)}
            )
        own = {"max_calls": 1, "max_retries": 0}
        with read_write(launcher.ray_cfg):
            launcher.ray_cfg.remote = {**own, **OmegaConf.to_container(launcher.ray_cfg.remote, resolve=True)}


def refuse_without_slurm(launcher: Launcher) -> None:
    """Raise UserError if a launcher would submit jobs to Slurm, which this machine doesn't have."""
    if getattr(launcher, "_EXECUTOR", None) == "slurm" and shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher=submitit_slurm finds no srun on this machine: start it where Slurm is installed, such as on"
            " the cluster's login node."
        )


def share_trials(launcher: Launcher, processes: int) -> None:
    """Make each job of submitit have as many tasks as a trial has processes."""
    params = getattr(launcher, "params", {})
    if "tasks_per_node" in params:
        nodes, tasks = params.get("nodes") or 1, params["tasks_per_node"] or 1
        if nodes * tasks == 1 and processes > 1:
            params["tasks_per_node"] = processes
        elif nodes * tasks != processes:
            raise UserError(
                f"A job has {nodes * tasks} tasks (hydra.launcher.nodes × tasks_per_node), but a trial"
                f" {processes} processes: type sweep.processes_per_trial={nodes * tasks}."
            )
    elif processes > 1 and not isinstance(launcher, Processes):
        raise UserError(
            f"sweep.processes_per_trial={processes} needs a launcher that starts them together:"
            " hydra/launcher=processes, submitit_slurm or submitit_local."
        )


def runs_here(launcher: Launcher) -> bool:
    """Whether trials run on this machine; elsewhere, only the job knows its memory and processors."""
    return isinstance(launcher, Processes) or getattr(launcher, "_EXECUTOR", None) == "local"


@contextlib.contextmanager
def shared_server(config: DictConfig, slots: int) -> Iterator[ForkServer | None]:
    """Start a server process for several searches; None with a launcher that needs none."""
    if config.hydra.launcher._target_ != LauncherOptions._target_:
        yield None
        return
    with contextlib.closing(ForkServer(slots)) as server:
        yield server


def fresh(run_dir: Path) -> Path:
    """Return an unused folder: an abandoned job may write to the old one until it notices."""
    name, attempt = run_dir.name, 1
    while run_dir.exists():
        attempt += 1
        run_dir = run_dir.with_name(f"{name}.{attempt}")
    return run_dir


def ends_a_job(error: BaseException) -> bool:
    """Whether `error` is how submitit exits a job to requeue it, or how Ctrl-C reaches it."""
    return isinstance(error, SystemExit) and "SUBMITIT_EXECUTOR" in os.environ


def time_was_up(error: BaseException) -> bool:
    """Whether `error` is what submitit raises in a job whose requested time is almost up."""
    return type(error).__name__ == "UncompletedJobError"
