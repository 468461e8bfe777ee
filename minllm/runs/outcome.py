"""What became of a trial, as its process leaves it in its folder for whoever runs the search.

A trial that ran out of memory is *pruned* and not *failed*: a sampler learns from what was pruned and forgets what
failed, so that telling it "failed" would send it into the same wall again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from minllm.runs.folder import to_json, write_text

FILE = "trial.json"
OUTPUT = "output.txt"
"""What a trial's process has printed, beside it."""

TOO_LONG = "It took longer than sweep.trial_minutes."
OF_THE_LAUNCHER = "It took longer than its launcher allows (hydra.launcher.timeout_min)."

State = Literal["complete", "pruned", "failed"]
Reason = Literal["pruner", "predicted", "memory", "killed", "diverged", "time", "crash"]


@dataclass(frozen=True)
class Outcome:
    """The end of a trial."""

    state: State
    value: float | None = None
    reason: Reason | None = None
    text: str = ""
    """The reason as a sentence."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured: predicted_bytes, peak_bytes, params, seconds, …"""

    @property
    def rows_were_halved(self) -> bool:
        """Whether the batch had to be taken in smaller parts than asked for."""
        asked = self.figures.get("micro_batch_size_asked")
        return asked is not None and self.figures["micro_batch_size"] < asked

    @property
    def smaller_may_fit(self) -> bool:
        """Whether a smaller batch is worth a try: memory ran out, and not with a single row."""
        if self.reason == "killed" or (self.reason == "memory" and "micro_batch_size" not in self.figures):
            return True  # before anything could be halved
        return self.rows_were_halved and (self.state == "complete" or self.figures["micro_batch_size"] > 1)

    @property
    def memory_ran_out(self) -> bool:
        return self.rows_were_halved or self.reason in ("predicted", "memory", "killed")


def write(outcome: Outcome, run_dir: Path, attempt: str) -> None:
    write_text(run_dir / FILE, to_json({"attempt": attempt, **asdict(outcome)}))


def read(run_dir: Path, attempt: str) -> Outcome | None:
    """Return what a trial's process wrote at its end; None if it didn't come to that in this attempt.

    A file that isn't ours to read, or that something else has written to, is none: the trial then counts as crashed.
    """
    try:
        left = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
        return Outcome(**left) if left.pop("attempt") == attempt else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
