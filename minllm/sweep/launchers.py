"""Hydra's launchers besides our own: which of them a search can use, and what each needs to be told for that."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, read_write

from minllm.errors import UserError
from minllm.sweep.plugin import LauncherOptions, Processes
from minllm.sweep.store import parsed, secrets


def refuse_password(config: DictConfig) -> None:
    """Raise UserError if a launcher would write a database's password down: its jobs are files, the words included.

    A password that's interpolated, such as `${oc.env:STUDY}`, is only known where it's used.
    """
    written = OmegaConf.to_container(config.sweep, resolve=False)["storage"]
    if config.hydra.launcher._target_ == LauncherOptions._target_ or written is None or "${" in written:
        return
    if secrets(parsed(written)):
        raise UserError(
            f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']} writes what it hands over into files, so"
            " sweep.storage can't have a password. Leave it out of the URL, and put it into ~/.pgpass, where PostgreSQL"
            " looks for it on every machine."
        )


def prepare(launcher: Launcher) -> None:
    """Have a launcher run each trial once, in a process of its own, and leave the terminal to the search."""
    # each would name every job, with all its words, between the lines of the table
    logging.getLogger("hydra_plugins").setLevel(logging.WARNING)
    if "submitit_folder" in getattr(launcher, "params", {}):
        launcher.params.setdefault("max_num_timeout", 0)  # or a trial that took too long begins again, thrice
    if hasattr(launcher, "ray_cfg"):
        import ray

        if not ray.is_initialized():  # here, since the threads that launch trials would each do it
            ray.init(
                **{"log_to_driver": False, **OmegaConf.to_container(launcher.ray_cfg.init, resolve=True)}
            )
        own = {"max_calls": 1, "max_retries": 0}
        with read_write(launcher.ray_cfg):
            launcher.ray_cfg.remote = {**own, **OmegaConf.to_container(launcher.ray_cfg.remote, resolve=True)}


def runs_here(launcher: Launcher) -> bool:
    """Say whether trials share this machine. A job's memory and processors elsewhere are known to it alone."""
    return isinstance(launcher, Processes) or getattr(launcher, "_EXECUTOR", None) == "local"


def fresh(run_dir: Path) -> Path:
    """Return a folder that nothing is in: a job that was given up may write to the old one until it notices."""
    name, attempt = run_dir.name, 1
    while run_dir.exists():
        attempt += 1
        run_dir = run_dir.with_name(f"{name}.{attempt}")
    return run_dir


def ends_a_job(error: BaseException) -> bool:
    """Whether `error` is how submitit leaves a job, to have it begin again elsewhere, or how Ctrl-C reaches it."""
    return isinstance(error, SystemExit) and "SUBMITIT_EXECUTOR" in os.environ


def time_was_up(error: BaseException) -> bool:
    """Whether `error` is what submitit raises within a job when the time that it asked for is almost up."""
    return type(error).__name__ == "UncompletedJobError"
