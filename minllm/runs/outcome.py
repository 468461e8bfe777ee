"""How a trial ended, as its process records it in its folder for the search.

A trial that ran out of memory is *pruned*, not *failed*: samplers learn from pruned trials but ignore failed ones, and
would propose similar settings again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from minllm.runs.folder import to_json, write_text

FILE = "trial.json"
OUTPUT = "output.txt"
"""The output of a trial's process, in the same folder."""

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
    """The reason, as text for the user."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Measurements: predicted_bytes, peak_bytes, params, seconds, …"""

    @property
    def rows_were_halved(self) -> bool:
        """Whether the micro-batch had to be made smaller than requested."""
        requested = self.figures.get("micro_batch_size_asked")
        return requested is not None and self.figures["micro_batch_size"] < requested

    @property
    def smaller_may_fit(self) -> bool:
        """Whether a smaller batch is worth trying: memory ran out, and not with a single row."""
        if self.reason == "killed" or (self.reason == "memory" and "micro_batch_size" not in self.figures):
            return True  # before the micro-batch could be halved
        return self.rows_were_halved and (self.state == "complete" or self.figures["micro_batch_size"] > 1)

    @property
    def memory_ran_out(self) -> bool:
        return self.rows_were_halved or self.reason in ("predicted", "memory", "killed")


def write(outcome: Outcome, run_dir: Path, attempt: str) -> None:
    write_text(run_dir / FILE, to_json({"attempt": attempt, **asdict(outcome)}))


def read(run_dir: Path, attempt: str) -> Outcome | None:
    """Return the outcome that a trial's process wrote; None if it wrote none in this attempt.

    An unreadable or invalid file also gives None: the trial then counts as crashed.
    """
    try:
        left = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
        return Outcome(**left) if left.pop("attempt") == attempt else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
