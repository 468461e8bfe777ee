"""Where a resumed run continues, and what must not have changed since its last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minllm.errors import UserError
from minllm.runs.folder import RunDir
from minllm.training import checkpoints


def last_checkpoint(folder: RunDir, resume: str) -> Path | None:
    """Return the checkpoint to continue from; None if the run stopped before its first checkpoint.

    Raises:
        UserError: a finished run no longer has a checkpoint.
    """
    if checkpoints.all_in(folder.checkpoints) or (folder.path / "summary.json").exists():
        return checkpoints.find(resume, "last")
    return None


def same_configuration(before: dict[str, str] | None, now: dict[str, str]) -> dict[str, str]:
    """Return `now`, the hashes of the configuration. UserError if the run was trained with a different one."""
    changed = [name for name in now if before and before.get(name, now[name]) != now[name]]
    if changed:
        raise UserError(
            f"{changed[0]} in the run's config.yaml differs from what its last checkpoint was trained with, so the run"
            " can't be resumed. Undo that change, or start a new run from its weights with init_from=<run>."
        )
    return now


def same_average(before: float | None, now: float | None) -> float | None:
    """Return `now`, the decay of the averaged weights. UserError if the run was trained with a different one."""
    if before != now:
        kept = "null" if before is None else before
        raise UserError(
            f"The run's last checkpoint was saved with train.ema={kept}, so the run can't be resumed with"
            f" train.ema={'null' if now is None else now}. Type train.ema={kept}, or start a new run from its weights"
            " with init_from=<run>."
        )
    return now


def same_data(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """Return `now`, the hashes of the documents. UserError if the run was trained on different ones."""
    if before not in (None, now):
        raise UserError(
            "This run's training or validation documents have changed since it started, so it can't be resumed."
            " Restore them, or start a new run from its weights with init_from=<run>."
        )
    return now
