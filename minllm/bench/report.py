"""Benchmark results: figures and ratios, as JSON and as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from minllm.bench.data import Encoding, Rows

MIB = 2**20


@dataclass(frozen=True)
class Figure:
    """The result of one contestant: the median of its turns."""

    what: str
    contestant: str
    tokens_per_second: float
    share_of_limit: float | None = None
    """The fraction of this machine's matrix-product FLOP/s in the same precision."""
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class Ratio:
    """minllm's result divided by another's: the median and range over pairs of neighbouring turns."""

    what: str
    median: float
    low: float
    high: float
    at_least: float | None = None
    at_most: float | None = None

    @classmethod
    def of(cls, what: str, ours: Sequence[float], theirs: Sequence[float], **bound: float | None) -> Ratio:
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        return cls(what, statistics.median(ratios), min(ratios), max(ratios), **bound)

    @property
    def wanted(self) -> str:
        """The bound; "" if there is none."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"

    @property
    def met(self) -> bool:
        low = -math.inf if self.at_least is None else self.at_least
        return low <= self.median <= (math.inf if self.at_most is None else self.at_most)

    @property
    def verdict(self) -> str:
        """The bound and whether the median meets it; "" if there is none."""
        return self.wanted and f"{self.wanted}: {'met' if self.met else 'missed'}"


@dataclass(frozen=True)
class MixerRow:
    """The results of one mixer in one setting."""

    setting: str
    mixer: str
    figures: list[Figure]
    """Its own at the shape's length first, then those of all other contestants."""
    beside_attention: list[Ratio]
    beside_theirs: list[Ratio]
    """Empty if transformers has no class with this mixer."""
    growth: list[Ratio]
    """Seconds per token at other lengths, relative to the shape's own length."""

    @property
    def ratios(self) -> list[Ratio]:
        return [*self.beside_attention, *self.beside_theirs, *self.growth]


@dataclass
class Report:
    """All results of one benchmark run."""

    machine: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""
    limits: dict[str, float] = field(default_factory=dict)
    """The FLOP/s of this machine's matrix products in each setting."""
    figures: list[Figure] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    mixers: list[MixerRow] = field(default_factory=list)
    encodings: list[Encoding] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    startup: dict[str, float] = field(default_factory=dict)
    """Seconds."""

    def as_dict(self) -> dict[str, Any]:
        parts = ("beside_attention", "beside_theirs", "growth")
        return {
            **asdict(self),
            "ratios": judged(self.ratios),
            "mixers": [
                {**asdict(row), **{part: judged(getattr(row, part)) for part in parts}} for row in self.mixers
            ],
        }

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        figures = [
            [
                figure.what,
                figure.contestant,
                f"{figure.tokens_per_second:,.0f}",
                "" if figure.share_of_limit is None else f"{figure.share_of_limit:.0%}",
                "" if figure.peak_memory_bytes is None else f"{figure.peak_memory_bytes / MIB:,.0f} MiB",
            ]
            for figure in self.figures
        ]
        ratios = [[r.what, f"{r.median:.2f}", f"{r.low:.2f} to {r.high:.2f}", r.verdict] for r in self.ratios]
        limits = [f"{what}: {flops / 1e9:,.0f} GFLOP/s" for what, flops in self.limits.items()]
        kind = "the GPU's peak" if self.machine["gpu"] else "torch.mm of 2,048²"
        machine = "{gpu}" if self.machine["gpu"] else "{cpu}, {threads} threads"
        return [
            machine.format(**self.machine) + f", torch {self.machine['torch']}",
            *self.notes,
            *table(["", "", "tokens/s", "of limit", "peak memory"], figures),
            *([f"The limit is {kind} ({'; '.join(limits)})."] if limits else []),
            *mixer_lines(self.mixers),
            *data_lines(self.encodings, self.rows),
            *[f"{what}: {seconds:.2f} s" for what, seconds in self.startup.items()],
            *table(["minllm / another", "ratio", "range", "wanted"], ratios),
        ]


def judged(ratios: Sequence[Ratio]) -> list[dict[str, Any]]:
    return [{**asdict(ratio), "verdict": ratio.verdict} for ratio in ratios]


def mixer_lines(rows: Sequence[MixerRow]) -> list[str]:
    """Return one table of all mixers, with a column for each ratio."""
    # columns are ordered by part, because not every row has every column
    parts = [
        [row.beside_attention for row in rows],
        [row.beside_theirs for row in rows],
        [row.growth for row in rows],
    ]
    ratios = [ratio for part in parts for found in part for ratio in found]
    wanted = {what: "" for what in dict.fromkeys(ratio.what for ratio in ratios)}
    wanted |= {ratio.what: ratio.wanted for ratio in ratios if ratio.wanted}
    cells = [
        [
            row.setting,
            row.mixer,
            f"{row.figures[0].tokens_per_second:,.0f}",
            *("".join(short(ratio) for ratio in row.ratios if ratio.what == what) for what in wanted),
            f"{row.figures[0].peak_memory_bytes / MIB:,.0f} MiB",
        ]
        for row in rows
    ]
    head = ["", "", "tokens/s", *wanted, "peak memory"]
    return table(head, [*cells, ["", "wanted", "", *wanted.values(), ""]] if cells else [])


def data_lines(encodings: Sequence[Encoding], rows: Sequence[Rows]) -> list[str]:
    """Return a table of tokenizers and a table of packings."""
    encoding_cells = [
        [
            one.tokenizer,
            f"{one.megabytes_per_second:.1f}",
            f"{one.bytes_per_token:.2f}",
            f"{one.minllm_times_as_fast:.2f}",
        ]
        for one in encodings
    ]
    row_cells = [
        [
            one.packing,
            f"{one.rows_per_second:,.0f}",
            *(f"{share:.1%}" for share in (one.padding, one.truncated, one.beheaded)),
        ]
        for one in rows
    ]
    return [
        *table(["encodes", "MB/s", "bytes per token", "minllm / it"], encoding_cells),
        *table(["makes rows", "rows/s", "padding", "truncated", "cut off"], row_cells),
    ]


def short(ratio: Ratio) -> str:
    return f"{ratio.median:.2f}" + ("" if ratio.met else " (missed)")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return an aligned table: text to the left, numbers to the right; [] if there are no rows."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    figures = [any(cell[:1].isdigit() for cell in column) for column in zip(*rows)]
    aligned = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, figures)
        )
        for row in [head, *rows]
    ]
    return ["", *[line.rstrip() for line in aligned], ""]
