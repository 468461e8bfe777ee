"""The progress of a run: the contents of a checkpoint's state.json, and their validation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from minllm.schema.checking import fits

LARGEST = 2**62
"""An upper bound for any number of steps or tokens."""


@dataclass
class Progress:
    """The progress of a run: everything in a checkpoint besides the weights and the optimizer state."""

    step: int = 0
    tokens: int = 0
    """Positions trained on, padding included: steps × batch_size × seq_len."""
    seconds: float = 0.0
    position: float = 0.0
    """Position on the learning rate schedule, in steps (see Budget)."""
    total_steps: int | None = None
    before: list[float] | None = None
    """`position` and `total_steps` before the latest step; None in older checkpoints."""
    timed_steps: int = 0
    timed_seconds: float = 0.0
    """The number of steps that don't compile, and the time they took; used for the pace."""
    val_loss: float | None = None
    val_bpb: float | None = None
    answers: dict[str, Any] | None = None
    """The shares of answers that are right and their intervals, where there are answers."""
    best: dict | None = None
    """The step and val_loss of the best evaluation so far."""
    tokenizer: str | None = None
    """The fingerprint of the model's tokenizer; None in older checkpoints."""
    data: dict | None = None
    """The numbers of documents, tokens and bytes of each split, and their hash; a resumed run must have the same."""
    ema: float | None = None
    """The decay of the averaged weights; None if they aren't averaged."""
    lr: float | None = None
    grad_norm: float | None = None
    """Of the latest step."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the steps since the last line of metrics."""
    recent_figures: list[dict[str, float]] = field(default_factory=list)
    """Metrics that modules reported for the same steps (`minllm.model.steps`)."""
    decisions: dict = field(default_factory=dict)
    """Choices made by `auto`; a resumed run keeps them."""
    configured: dict[str, str] | None = None
    """A hash of each section of the configuration that can't change in a run; None in older checkpoints."""
    trunk: dict | None = None
    """The run that this one branched from, and that run's step, tokens and seconds there; None if it didn't."""
    records: dict[str, list[int]] = field(default_factory=dict)
    """Lengths and checksums of metrics.jsonl and samples.txt."""
    files: dict[str, int] | None = None
    """The checksums of the checkpoint's other files; None in older checkpoints."""

    def recent_means(self) -> dict[str, float]:
        """Return the mean of each of `recent_figures` over the steps that have it."""
        names = dict.fromkeys(name for metrics in self.recent_figures for name in metrics)
        values_of = {
            name: [metrics[name] for metrics in self.recent_figures if name in metrics] for name in names
        }
        return {name: sum(values) / len(values) for name, values in values_of.items()}

    def tokens_per_second(self, tokens_per_step: int) -> float:
        """Return the pace of training, excluding evaluations, checkpoints and compilation."""
        if not self.timed_steps:
            return self.tokens / self.seconds if self.seconds else 0.0
        return self.timed_steps * tokens_per_step / self.timed_seconds


def wrong_values(progress: Progress, step: int) -> list[str]:
    """Return the names of the values that are invalid in a checkpoint of `step`."""
    best, decisions = progress.best, progress.decisions
    right = {
        "step": is_count(progress.step) and progress.step == step,
        "tokens": is_count(progress.tokens),
        "seconds": is_time(progress.seconds) and (progress.seconds > 0 or not progress.tokens),
        "position": is_time(progress.position) and progress.position <= LARGEST,
        "total_steps": progress.total_steps is None
        or (is_count(progress.total_steps) and progress.total_steps > 0),
        "before": progress.before is None
        or (isinstance(progress.before, list) and len(progress.before) == 2)
        and (all(map(is_time, progress.before)) and progress.before[1] > 0),
        "timed_steps": is_count(progress.timed_steps),
        "timed_seconds": is_time(progress.timed_seconds)
        and (progress.timed_seconds > 0 or not progress.timed_steps),
        "val_loss": progress.val_loss is None or is_number(progress.val_loss),
        "val_bpb": progress.val_bpb is None or is_number(progress.val_bpb),
        "answers": fits(progress.answers, dict[str, float | list[float]] | None),
        "best": best is None
        or (isinstance(best, dict) and is_count(best.get("step")) and is_number(best.get("val_loss"))),
        "tokenizer": progress.tokenizer is None or isinstance(progress.tokenizer, str),
        "data": progress.data is None or isinstance(progress.data, dict),
        "ema": progress.ema is None or (is_number(progress.ema) and 0 < progress.ema < 1),
        "lr": progress.lr is None or is_number(progress.lr),
        "grad_norm": progress.grad_norm is None or is_number(progress.grad_norm),
        "recent_losses": isinstance(progress.recent_losses, list)
        and all(map(is_number, progress.recent_losses)),
        "recent_figures": isinstance(progress.recent_figures, list)
        and all(
            isinstance(metrics, dict) and all(map(is_number, metrics.values()))
            for metrics in progress.recent_figures
        ),
        "decisions": isinstance(decisions, dict)
        and decisions.get("precision", "fp32") in ("fp32", "bf16")
        and isinstance(decisions.get("compile", False), bool)
        and all(
            is_count(decisions.get(name, 1)) and decisions.get(name, 1) > 0
            for name in ("micro_batch_size", "micro_batch_size_asked")
        ),
        "configured": fits(progress.configured, dict[str, str] | None),
        "trunk": progress.trunk is None
        or (isinstance(progress.trunk, dict) and isinstance(progress.trunk.get("run"), str))
        and all(is_count(progress.trunk.get(name)) for name in ("step", "tokens"))
        and is_time(progress.trunk.get("seconds")),
        "records": fits(progress.records, dict[str, list[int]])
        and all(len(mark) == 2 and mark[0] >= 0 for mark in progress.records.values()),
        "files": fits(progress.files, dict[str, int] | None),
    }
    return [name for name, is_right in right.items() if not is_right]


def is_number(value: object) -> bool:
    """Whether a value is a number. NaN is allowed: the validation loss of a diverged model can be NaN."""
    return type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def is_time(value: object) -> bool:
    return is_number(value) and math.isfinite(value) and value >= 0
