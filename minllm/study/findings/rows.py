"""The ledger of findings, `outputs/findings.jsonl`: a line for each test of a finding, the newest last.

It is small, so it is written as a whole and renamed: no line is ever cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minllm.errors import UserError
from minllm.files.atomic import acquire_lock, refuse_link, write_text
from minllm.runs.find import OUTPUTS
from minllm.study import recorded
from minllm.study.findings.outcomes import Decision, Outcome
from minllm.study.report.data import plain

VERSION = 1
FILE = OUTPUTS / "findings.jsonl"
PATIENCE_SECONDS = 60.0

OUTCOME = {
    **{"of": str, "arm": str, "baseline": str, "predicted": list[str], "word": str, "unit": str},
    **{"difference": float | None, "interval": list[float | None] | None, "pairs": int | None},
}


@dataclass(frozen=True)
class Row:
    """A test of a finding.

    digest: of what decides it; another one means that its file has changed since
    typed: further overrides of the command line; with any, it isn't the finding itself that was tested
    minutes: that training took, in all calls
    """

    finding: str
    digest: str
    preset: str
    first_seed: int
    typed: Sequence[str]
    decision: Decision
    outcomes: Sequence[Mapping[str, Any]]
    minutes: float
    command: str
    time: str


KINDS = {
    **dict.fromkeys(("finding", "digest", "preset", "command", "time"), str),
    **{
        "decision": Decision,
        "first_seed": int,
        "typed": list[str],
        "outcomes": list[dict[str, Any]],
        "minutes": float,
    },
}


def read(path: Path = FILE) -> list[Row]:
    """Return the rows. UserError if one is damaged."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, but should be a file. Remove it.")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.split("\n")  # unlike splitlines, which splits at characters that are allowed in JSON, too
    return [row_of(line, f"{path}, line {number},") for number, line in enumerate(lines, 1) if line.strip()]


def append(row: Row, path: Path = FILE) -> None:
    """Add a row, unless the last one of its finding says the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = f"Another process has been writing to {path} for a minute. Stop it, and repeat the command."
    lock = acquire_lock(path.with_suffix(".lock"), PATIENCE_SECONDS, busy)
    try:
        if path.is_symlink():
            refuse_link(path, is_appended=False)
        rows = read(path)
        same = [other for other in rows if key(other) == key(row)]
        if not same or result(same[-1]) != result(row):
            write_text(path, "".join(f"{line(one)}\n" for one in [*rows, row]))
    finally:
        lock.release()


def outcomes_of(row: Row) -> list[Outcome]:
    return [Outcome(**{name: outcome[name] for name in OUTCOME}) for outcome in row.outcomes]


def key(row: Row) -> tuple[Any, ...]:
    """Return what was tested: rows with the same key are of the same runs, or of their repetition."""
    return row.finding, row.digest, row.preset, row.first_seed, tuple(row.typed)


def result(row: Row) -> Mapping[str, Any]:
    return plain({"decision": row.decision, "outcomes": row.outcomes, "minutes": row.minutes})


def line(row: Row) -> str:
    return json.dumps(plain({"version": VERSION, **asdict(row)}), ensure_ascii=False, allow_nan=False)


def row_of(text: str, where: str) -> Row:
    """Return the row in a line. UserError if it is damaged."""
    content = recorded.parsed(text)
    try:
        if not isinstance(content, dict):
            raise recorded.Damaged("It isn't a JSON object.")
        recorded.check(content, KINDS, "row")
        for outcome in content["outcomes"]:
            recorded.check(outcome, OUTCOME, "row", "outcomes.")
            if outcome["interval"] is not None and len(outcome["interval"]) != 2:
                raise recorded.Damaged("Its outcomes.interval needs two ends.")
    except recorded.Damaged as error:
        raise UserError(f"{where} is damaged. {error} Restore or remove the line.") from error
    return Row(**{name: content[name] for name in KINDS})
