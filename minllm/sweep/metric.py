"""What a search minimizes: a loss, or of an accuracy what is missing to 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from minllm.errors import UserError

Accuracy = Literal["val_accuracy", "val_exact"]
Metric = Literal["val_loss", "val_bpb", Accuracy]


def minimized(metric: Metric) -> str:
    """Return what is minimized, as it is shown."""
    return f"1 − {metric}" if metric in get_args(Accuracy) else metric


def value(figures: Mapping[str, Any], metric: Metric) -> float:
    """Return what is minimized of a run's figures. UserError if they have no accuracy."""
    if metric not in get_args(Accuracy):
        return figures[metric]
    if metric not in figures:
        raise UserError(
            f"This run has no {metric}, which needs data with answers and an objective that predicts one token after"
            " the other. Choose sweep.metric=val_loss."
        )
    return 1.0 - figures[metric]
