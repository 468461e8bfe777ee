"""`python run.py`: train a model, report its progress, and finish with its loss and a sample."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from minllm.schema.options import RunPlace
from minllm.training import train as training


def train(
    cfg: DictConfig,
    run_dir: Path,
    *,
    resume: RunPlace | None = None,
    init_from: RunPlace | None = None,
    branch_from: RunPlace | None = None,
) -> dict:
    """See `minllm.training.train.train`."""
    return training.train(cfg, run_dir, resume=resume, init_from=init_from, branch_from=branch_from)
