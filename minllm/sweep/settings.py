"""What the `sweep:` and `memory:` nodes of a configuration may say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from minllm.errors import UserError
from minllm.schema.checking import Node
from minllm.schema.kinds import PLACES
from minllm.schema.options import Count, FolderName, Name, Positive

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a search is led.

    name: the study's name, which is its folder's too
    metric: what is made small; nats a token, or bits a byte where trials differ in their tokenizers
    storage: null is a journal in the study's folder; or a database, such as sqlite:///studies.db or postgresql://…
    minutes: after which no trial begins
    trial_minutes: a trial that takes longer is ended, and counts as pruned
    max_failures: crashes in a row after which the search stops
    keep_checkpoints: those of the best trial so far, of all or of none
    dry_run: say what would be searched, and try nothing
    trial: what every trial has, unless the search's file or the command line says otherwise
    pruner: which trials are ended early
    """

    name: FolderName
    metric: Literal["val_loss", "val_bpb"]
    storage: Name | None
    minutes: Positive | None
    trial_minutes: Positive | None
    max_failures: Count
    keep_checkpoints: Literal["best", "all", "none"]
    dry_run: bool
    trial: dict[str, Any]
    pruner: Annotated[Node, PLACES["sweep.pruner"]]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a trial may use.

    limit: of one trial, such as 8GiB; null is what is free, divided among the trials that run at once
    predict: compute a trial's peak before it starts, and prune at once what can't fit
    """

    limit: Name | int | None
    predict: bool

    def __post_init__(self):
        if self.limit is not None:
            size(self.limit)

    @property
    def limit_bytes(self) -> int | None:
        return None if self.limit is None else size(self.limit)


def size(words: str | int) -> int:
    """Return the bytes that `8GiB` or `500MB` stands for."""
    match = re.fullmatch(r"([\d.]+)\s*([KMG]i?B|)", str(words))
    try:
        found = int(float(match[1]) * UNITS[match[2]]) if match else 0
    except ValueError:
        found = 0
    if found <= 0:
        raise UserError(f"memory.limit={words} is no size: write it as 8GiB, 500MB or a number of bytes.")
    return found
