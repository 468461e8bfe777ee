"""The table with a row for each arm: its loss, its size and its costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minllm.page import units
from minllm.study.arms import Arm
from minllm.study.comparison import METRIC, Comparison
from minllm.study.statistics import spread
from minllm.study.trust import impossible
from minllm.study.tuning import RATE


@dataclass(frozen=True)
class Column:
    """A column of the table.

    key: its name in report.json
    heading: its heading in the other reports
    of: returns the value for an arm; None if unknown
    unit: formats the value
    """

    key: str
    heading: str
    of: Callable[[Arm], float | None]
    unit: Callable[[float | None], str]


def mean(key: str) -> Callable[[Arm], float | None]:
    """Return a function that averages a value of summary.json over the runs of an arm that have it."""

    def of(arm: Arm) -> float | None:
        known = [value for value in arm.values(key) if units.finite(value) is not None]
        return spread(known)[0] if known else None

    return of


def deviation(arm: Arm) -> float | None:
    """Return the standard deviation of an arm's bits per byte over its seeds."""
    return spread(arm.values(METRIC))[1] if len(arm.runs) > 1 else None


def learning_rate(arm: Arm) -> float | None:
    return (arm.cfg.get("optim") or {}).get("lr")


COLUMNS = (
    Column("seeds", "seeds", lambda arm: len(arm.runs), units.count),
    Column("val_bpb", "bits per byte", mean(METRIC), units.bits),
    Column("val_bpb_sd", "sd", deviation, units.bits),
    Column("bpb_above_floor", "above the floor", mean("bpb_above_floor"), units.bits),
    Column("val_accuracy", "accuracy", mean("val_accuracy"), units.share),
    Column("val_exact", "exact", mean("val_exact"), units.share),
    Column("params", "parameters", mean("params"), units.count),
    Column("params_active", "active", mean("params_active"), units.count),
    Column("params_non_embedding", "non-embedding", mean("params_non_embedding"), units.count),
    Column("flops_per_token", "FLOPs per token", mean("flops_per_token"), units.count),
    Column("state_bytes_per_sequence", "state", mean("state_bytes_per_sequence"), units.memory),
    Column("tokens_per_second", "tokens per second", mean("tokens_per_second"), units.count),
    Column("wall_seconds", "time", mean("wall_seconds"), units.duration),
    Column("peak_memory_bytes", "peak memory", mean("peak_memory_bytes"), units.memory),
    Column("learning_rate", "learning rate", learning_rate, units.rate),
)
"""The columns after the arm's name. Distances to a corpus's floor are known only if the floor is."""

OF_ANSWERS = ("val_accuracy", "val_exact")
"""The columns that are shown only if an arm has a value."""
BOUNDED = (METRIC, "bpb_above_floor")
"""The columns that are upper bounds if the bits per byte are."""


def columns(comparison: Comparison) -> list[Column]:
    """Return the columns of a comparison's tables."""
    return [
        column
        for column in COLUMNS
        if column.key not in OF_ANSWERS or any(column.of(arm) is not None for arm in comparison.arms)
    ]


def cells(arm: Arm, comparison: Comparison) -> list[str]:
    """Return an arm's formatted values, with a note on how its learning rate was chosen."""
    tuning = comparison.tuning.get(arm.name)
    mark = ""
    if tuning is not None and RATE in tuning.chosen:
        mark = " (tuned, not settled)" if tuning.unsettled else " (tuned)"
    marks = {"learning_rate": mark, "bpb_above_floor": " IMPOSSIBLE" if impossible(arm) else ""}
    return [
        units.marked(column.unit(column.of(arm)), arm.bound if column.key in BOUNDED else None)
        + marks.get(column.key, "")
        for column in columns(comparison)
    ]


def row(arm: Arm) -> dict[str, Any]:
    """Return an arm's values by key, and whether its bits per byte are exact or an upper bound; None without a run."""
    bound = arm.bound if arm.runs else None
    return {"arm": arm.name, "val_bound": bound, **{column.key: column.of(arm) for column in COLUMNS}}
