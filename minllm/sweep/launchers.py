"""Hydra's launchers besides our own: which of them a search can use, and what each needs to be told for that."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError
from minllm.sweep.plugin import LauncherOptions
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
