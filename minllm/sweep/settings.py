"""The options of the `sweep:` and `memory:` sections of a configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from minllm.errors import UserError
from minllm.schema.checking import Node
from minllm.schema.kinds import SECTION_KINDS
from minllm.schema.options import Count, FolderName, Name, Positive
from minllm.sweep.metric import Metric

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Options of a search.

    name: name of the study and of its folder
    metric: what is minimized: nats per token, or bits per byte if trials use different tokenizers; of an accuracy, what
        is missing to 1
    storage: null for a journal in the study's folder, or a database such as sqlite:///studies.db or postgresql://…
    minutes: time after which no new trial starts
    trial_minutes: time limit of a trial; one that takes longer is stopped and counts as pruned
    processes_per_trial: number of processes that train a trial together (docs/parallel.md), each on its own GPU
    max_failures: number of consecutive crashes after which the search stops
    keep_checkpoints: keep those of the best trial so far, of all trials or of none
    dry_run: print the search space without running any trial
    trial: overrides for every trial, unless the search's file or the command line sets the same keys
    pruner: decides which trials are stopped early
    """

    name: FolderName
    metric: Metric
    storage: Name | None
    minutes: Positive | None
    trial_minutes: Positive | None
    max_failures: Count
    keep_checkpoints: Literal["best", "all", "none"]
    dry_run: bool
    trial: dict[str, Any]
    pruner: Annotated[Node, SECTION_KINDS["sweep.pruner"]]
    processes_per_trial: Count = 1


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory limits of a trial.

    limit: memory of one trial, or of each of its processes, such as 8GiB; null divides what is free among those that
        run at once
    predict: predict a trial's peak memory before it starts, and prune it right away if it can't fit
    """

    limit: Name | int | None
    predict: bool

    def __post_init__(self):
        if self.limit is not None:
            size(self.limit)

    @property
    def limit_bytes(self) -> int | None:
        return None if self.limit is None else size(self.limit)


def size(text: str | int) -> int:
    """Return the number of bytes that `8GiB` or `500MB` stands for."""
    match = re.fullmatch(r"([\d.]+)\s*([KMG]i?B|)", str(text))
    try:
        n_bytes = int(float(match[1]) * UNITS[match[2]]) if match else 0
    except ValueError:
        n_bytes = 0
    if n_bytes <= 0:
        raise UserError(f"memory.limit={text} isn't a size: write 8GiB, 500MB or a number of bytes.")
    return n_bytes
