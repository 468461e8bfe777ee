"""How far a run is: what state.json of a checkpoint says, and which values it can't have."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from minllm.validation import fits

LARGEST = 2**62
"""Above any number of steps or tokens."""


@dataclass
class Progress:
    """How far a run is: all that a checkpoint must know besides weights and optimizer."""

    step: int = 0
    tokens: int = 0
    """Positions trained on, padding included: steps × batch_size × seq_len."""
    seconds: float = 0.0
    position: float = 0.0
    """Where on its schedule the run is, in steps (see Budget)."""
    total_steps: int | None = None
    before: list[float] | None = None
    """`position` and `total_steps` before the latest step; None in older checkpoints."""
    timed_steps: int = 0
    timed_seconds: float = 0.0
    """The steps whose pace counts, and the time they took: all but those that compile."""
    val_loss: float | None = None
    val_bpb: float | None = None
    best: dict | None = None
    """The step and val_loss of the best evaluation so far."""
    tokenizer: str | None = None
    """The fingerprint of the tokenizer whose tokens the model reads; None in checkpoints of before."""
    data: dict | None = None
    """How many documents, tokens and bytes it learns from, and their hash; a resumed run learns from the same."""
    lr: float | None = None
    grad_norm: float | None = None
    """Of the latest step."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the steps since the last line of metrics."""
    recent_figures: list[dict[str, float]] = field(default_factory=list)
    """What modules reported of the same steps (`minllm.model.steps`)."""
    decisions: dict = field(default_factory=dict)
    """What `auto` has chosen; a resumed run chooses the same."""
    configured: dict[str, str] | None = None
    """A hash of each section of the configuration that can't change in a run; None in checkpoints of before."""
    records: dict[str, list[int]] = field(default_factory=dict)
    """How long metrics.jsonl and samples.txt were, and their checksums."""
    files: dict[str, int] | None = None
    """The checksums of the checkpoint's other files; None in checkpoints of before."""

    def tokens_per_second(self, tokens_per_step: int) -> float:
        """Return the pace of training alone, without evaluations, checkpoints and compiling."""
        if not self.timed_steps:
            return self.tokens / self.seconds if self.seconds else 0.0
        return self.timed_steps * tokens_per_step / self.timed_seconds


def wrong_values(progress: Progress, step: int) -> list[str]:
    """Return the names of the values that a checkpoint of `step` can't have."""
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
        "best": best is None
        or (isinstance(best, dict) and is_count(best.get("step")) and is_number(best.get("val_loss"))),
        "tokenizer": progress.tokenizer is None or isinstance(progress.tokenizer, str),
        "data": progress.data is None or isinstance(progress.data, dict),
        "lr": progress.lr is None or is_number(progress.lr),
        "grad_norm": progress.grad_norm is None or is_number(progress.grad_norm),
        "recent_losses": isinstance(progress.recent_losses, list)
        and all(map(is_number, progress.recent_losses)),
        "recent_figures": isinstance(progress.recent_figures, list)
        and all(
            isinstance(one, dict) and all(map(is_number, one.values())) for one in progress.recent_figures
        ),
        "decisions": isinstance(decisions, dict)
        and decisions.get("precision", "fp32") in ("fp32", "bf16")
        and isinstance(decisions.get("compile", False), bool)
        and all(
            is_count(decisions.get(name, 1)) and decisions.get(name, 1) > 0
            for name in ("micro_batch_size", "micro_batch_size_asked")
        ),
        "configured": fits(progress.configured, dict[str, str] | None),
        "records": fits(progress.records, dict[str, list[int]])
        and all(len(mark) == 2 and mark[0] >= 0 for mark in progress.records.values()),
        "files": fits(progress.files, dict[str, int] | None),
    }
    return [name for name, is_right in right.items() if not is_right]


def is_number(value: object) -> bool:
    """Whether a value is a number. It may be NaN, as the validation loss of a model that diverged."""
    return type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def is_time(value: object) -> bool:
    return is_number(value) and math.isfinite(value) and value >= 0
