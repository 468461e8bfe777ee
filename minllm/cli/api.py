"""The Python counterpart of `python run.py`, for notebooks and scripts."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from minllm.config.compose import perform
from minllm.errors import disk_error
from minllm.runs.find import new_run_dir


def train(cfg: DictConfig, run_dir: str | Path | None = None) -> dict:
    """Train the model that `cfg` describes, as `python run.py` does.

    Args:
        cfg: from `minllm.compose`, possibly modified; it is validated first.
        run_dir: the run's folder; by default a new one under outputs/, or the one that `resume=` names.

    Returns:
        The contents of summary.json: `val_loss` in nats per token, `val_bpb` in bits per byte, and so on.

    Raises:
        UserError: the configuration can't be trained, or memory or disk space ran out.
        SystemExit: Ctrl-C or SIGTERM stopped the run, after a checkpoint.
    """
    try:
        return perform(cfg, Path(run_dir) if run_dir else new_run_dir())
    except OSError as error:
        sentence = disk_error(error)
        if sentence is None:
            raise
        raise sentence from error
