"""The ledger: every verdict that was started and reached here, in `outputs/ledger.jsonl`.

A line is a JSON object. One with the event `started` is written before a verdict's first run and gives its ideas their
numbers and test levels; one with the event `reached` is written when a verdict is reached, and again if more pairs
change it. Lines are only ever appended, under a lock, and are on the disk before the verdict continues. A verdict that
was started and abandoned stays visible, because every idea that was tried counts, whatever its outcome.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from minllm.errors import UserError
from minllm.files.atomic import acquire_lock, refuse_link, without_links
from minllm.runs.find import OUTPUTS
from minllm.schema.checking import fits
from minllm.verdict.discoveries import level

VERSION = 1
FILE = OUTPUTS / "ledger.jsonl"
PATIENCE_SECONDS = 60.0
"""Longer than another process holds the lock while it reads and appends."""

Line = dict[str, Any]

COMMON = {"version": int, "event": str, "id": str, "time": str}
STARTED = {"name": str, "question": dict[str, Any], "places": list[dict[str, Any]]}
PLACE = {"arm": str, "baseline": str, "idea": str, "number": int, "level": float}
REACHED = {"headline": str, "outcomes": list[dict[str, Any]], "noise": list[dict[str, Any]]}
OUTCOME = {
    **{"arm": str, "baseline": str, "outcome": str, "pairs": int, "difference": float | None},
    **{"number": int | None, "level": float | None, "p": float, "holds": bool | None, "open": bool | None},
}
EVENTS = {"started": STARTED, "reached": REACHED}
INSIDE = {"places": PLACE, "outcomes": OUTCOME}


@dataclass(frozen=True)
class Contents:
    """The contents of a ledger.

    lines: in the order in which they were written
    damaged: a sentence for each line that can't be read
    """

    lines: Sequence[Line]
    damaged: Sequence[str] = ()

    def of(self, event: str, identifier: str | None = None) -> list[Line]:
        """Return the lines of an event, or only those of one verdict."""
        return [line for line in self.lines if line["event"] == event and identifier in (None, line["id"])]

    @property
    def ideas(self) -> int:
        """How many ideas have been started."""
        return max(map(last_number, self.lines), default=0)

    def discoveries(self) -> list[int]:
        """Return, for each idea that was discovered, how many ideas had been started by then.

        An idea that is discovered a second time, under another name or after more pairs, isn't another discovery.
        """
        ideas: dict[tuple[str, int], str] = {}
        started, known, discoveries = 0, set(), []
        for line in self.lines:
            started = max(started, last_number(line))
            if line["event"] == "started":
                ideas |= {(line["id"], place["number"]): place["idea"] for place in line["places"]}
            for outcome in line.get("outcomes", ()):
                idea = ideas.get((line["id"], outcome["number"]), outcome["number"])
                if outcome["holds"] and idea not in known:
                    known.add(idea)
                    discoveries.append(started)
        return discoveries

    def champion(self, kind: str) -> Line | None:
        """Return the newest crowning among questions of a kind, or None before the first."""
        crowned = [line for line in self.of("reached") if (line.get("crowned") or {}).get("kind") == kind]
        return crowned[-1]["crowned"] if crowned else None


class Ledger:
    """The ledger of a working directory."""

    def __init__(self, path: Path = FILE):
        self.path = path

    def read(self) -> Contents:
        """Return the whole ledger; a last line that is still being written is left out."""
        return parsed(self.path, self._content().rpartition(b"\n")[0])

    @contextlib.contextmanager
    def locked(self) -> Iterator[Contents]:
        """Hold the lock, so that no other process appends, and yield the ledger after repairing its end.

        Raises:
            UserError: another process holds the lock, or the ledger is a link.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(
            self.path.with_suffix(".lock"),
            PATIENCE_SECONDS,
            f"Another process has been writing to {self.path} for a minute. Stop it, and repeat the command.",
        )
        try:
            if os.path.lexists(self.path):
                refuse_link(self.path, is_appended=True)
            self._repair_end()
            yield self.read()
        finally:
            lock.release()

    def append(self, event: str, identifier: str, content: Mapping[str, Any]) -> Line:
        """Append a line and return it once it is on the disk. Call it only while `locked`."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
        line = {"version": VERSION, "event": event, "id": identifier, "time": now, **content}
        self._write((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return line

    def _content(self) -> bytes:
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder, but should be a file. Remove it.")
        return self.path.read_bytes() if self.path.exists() else b""

    def _write(self, text: bytes) -> None:
        new = not self.path.exists()
        with open(self.path, "ab", opener=without_links) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if new:
            fsync_folder(self.path.parent)

    def _repair_end(self) -> None:
        """Complete a last line that lacks only its line break; set aside one that was cut off."""
        content = self._content()
        whole, _, last = content.rpartition(b"\n")
        if not last:
            return
        if not line_of(last)[1]:
            self._write(b"\n")
            return
        torn = self.path.with_suffix(".torn")
        with open(torn, "ab", opener=without_links) as file:
            file.write(last + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with open(self.path, "r+b", opener=without_links) as file:
            file.truncate(len(content) - len(last))
            os.fsync(file.fileno())
        print(
            f"The last line of {self.path} was cut off when it was written, so it was moved to {torn}.",
            flush=True,
        )


def last_number(line: Line) -> int:
    """Return the largest number of an idea in a line; 0 if there is none."""
    places = line["places"] if line["event"] == "started" else line["outcomes"]
    return max((place["number"] or 0 for place in places), default=0)


def next_places(contents: Contents, ideas: Sequence[tuple[str, str, str]]) -> list[Line]:
    """Return the places of new ideas, each an arm, its baseline, and what identifies the two; see PLACE."""
    before, known = contents.ideas, contents.discoveries()
    return [
        {
            "arm": arm,
            "baseline": baseline,
            "idea": idea,
            "number": number,
            "level": float(f"{level(number, known):.6g}"),
        }
        for number, (arm, baseline, idea) in enumerate(ideas, before + 1)
    ]


def refuse_damage(contents: Contents) -> None:
    """Raise UserError if a line can't be read, because the levels of new ideas depend on every line."""
    if contents.damaged:
        raise UserError(
            f"{contents.damaged[0]} Error rates over all ideas depend on every line: restore the line, or delete it if"
            " it belongs to no verdict. search.ledger=false doesn't use the ledger."
        )


def parsed(path: Path, content: bytes) -> Contents:
    """Return the contents of a ledger; a damaged line is named by its number."""
    lines, damaged = [], []
    for number, text in enumerate(content.split(b"\n") if content else [], 1):
        line, fault = line_of(text)
        if fault:
            damaged.append(f"{path}, line {number}, is damaged: {fault}.")
        else:
            lines.append(line)
    return Contents(lines, damaged)


def line_of(text: bytes) -> tuple[Line, str]:
    """Return a line and "", or else {} and what is wrong with it."""
    try:
        line = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        return {}, "it isn't UTF-8"
    except (ValueError, RecursionError):
        return {}, "it isn't JSON" if text.strip() else "it is empty"
    fault = fault_in(line, COMMON, "")
    if not fault and line["version"] > VERSION:
        fault = f"it was written by a newer minllm (version {line['version']})"
    if not fault and line["event"] not in EVENTS:
        fault = f"its event is {line['event']!r}"
    if not fault:
        fault = fault_in(line, EVENTS[line["event"]], "")
    for key, kinds in INSIDE.items():
        for place, inner in enumerate(line.get(key, ()) if not fault else ()):
            fault = fault or fault_in(inner, kinds, f"{key}[{place}].")
    return ({}, fault) if fault else (line, "")


def fault_in(content: Any, kinds: Mapping[str, Any], prefix: str) -> str:
    """Return what is wrong with an object that should have values of these kinds; "" if nothing is."""
    if not isinstance(content, dict):
        return "it isn't an object"
    for key, kind in kinds.items():
        if key not in content:
            return f"it has no {prefix}{key}"
        if not fits(content[key], kind):
            return f"its {prefix}{key} is {str(content[key])[:40]!r}"
    return ""


def fsync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
