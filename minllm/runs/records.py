"""The part of metrics.jsonl and samples.txt that a resumed run keeps: everything up to the step it continues from.

Both files are only appended to, so a checkpoint records their lengths and checksums at that time (`marked`). If a file
still begins with the same bytes, it is cut there; otherwise its lines are parsed, and the log says that it changed.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minllm.errors import UserError
from minllm.files.atomic import contents

METRICS, SAMPLES = "metrics.jsonl", "samples.txt"
SAMPLE_HEAD = re.compile(rb"^=== step (\d{1,18}) ===$", re.MULTILINE)
LIKE_A_HEAD = re.compile(r"^(?= *=== step \d+ ===$)", re.MULTILINE)


@dataclass(frozen=True)
class Kept:
    """The contents of its files that a resumed run keeps: everything up to the step it continues from.

    metrics, samples: the files' new contents; None for a file that doesn't change
    recorded: the names of all metrics that metrics.jsonl has for that step
    sample: the text that samples.txt has for that step, if any
    changed: the names of the files that were changed after the checkpoint was saved
    """

    metrics: bytes | None
    samples: bytes | None
    recorded: frozenset[str]
    sample: str | None
    changed: tuple[str, ...]


def marked(run: Path) -> dict[str, list[int]]:
    """Return each file's length in bytes and its CRC-32, for a checkpoint."""
    files = {name: contents(run / name) for name in (METRICS, SAMPLES)}
    return {name: [len(content), zlib.crc32(content)] for name, content in files.items()}


def kept_of(run: Path, step: int, marks: Mapping[str, list[int]], torn: bool) -> Kept:
    """Return what is kept of a run's files if it continues from `step`; nothing is written.

    Args:
        marks: the result of `marked` in the checkpoint; empty for a checkpoint of an older minllm.
        torn: whether the last sample may be incomplete.

    Raises:
        UserError: a line of the metrics is damaged.
    """
    metrics, samples = contents(run / METRICS), contents(run / SAMPLES)
    lines = metrics.split(b"\n")[:-1]
    events = [event_of(line, run / METRICS, number) for number, line in enumerate(lines, 1)]
    whole = part_at_checkpoint(metrics, marks.get(METRICS))
    if whole is None:
        whole = b"".join(line + b"\n" for line, event in zip(lines, events) if event["step"] <= step)
    events = events[: whole.count(b"\n")] if metrics.startswith(whole) else events
    before = part_at_checkpoint(samples, marks.get(SAMPLES))
    if before is None:
        written = samples_up_to(step, samples, torn)
    else:
        written = before + sample_after(before, samples, step, torn)
    unchanged = {METRICS: part_at_checkpoint(whole, marks.get(METRICS)), SAMPLES: before}
    return Kept(
        metrics=None if whole == metrics else whole,
        samples=None if written == samples else written,
        recorded=frozenset(name for event in events if event["step"] == step for name in event),
        sample=text_of(step, written),
        changed=tuple(name for name in marks if unchanged.get(name) is None),
    )


def part_at_checkpoint(content: bytes, mark: list[int] | None) -> bytes | None:
    """Return the part of a file that existed at a checkpoint; None if the file no longer begins with it."""
    if mark is None or len(content) < mark[0]:
        return None
    begins = content[: mark[0]]
    return begins if zlib.crc32(begins) == mark[1] else None


def samples_up_to(step: int, text: bytes, torn: bool) -> bytes:
    """Return the samples up to `step`, according to the headings in samples.txt."""
    heads = [(int(head[1]), head.start()) for head in SAMPLE_HEAD.finditer(text)]
    ends = [start for at, start in heads if at > step or (at == step and torn)]
    return text[: min(ends, default=len(text))]


def sample_after(before: bytes, text: bytes, step: int, torn: bool) -> bytes:
    """Return the sample of `step` that follows `before` in samples.txt; empty if it's missing or incomplete."""
    after = text[len(before) :]
    first, *later = [*SAMPLE_HEAD.finditer(after), None]
    if first is None or first.start() > 0 or int(first[1]) != step or torn:
        return b""
    sample = after[: later[0].start()] if later[0] else after
    return sample if sample.endswith(b"\n\n") else b""


def text_of(step: int, samples: bytes) -> str | None:
    heads = [head for head in SAMPLE_HEAD.finditer(samples) if int(head[1]) == step]
    return samples[heads[-1].end() + 1 :].decode("utf-8", "replace").rstrip() if heads else None


def sample_text(step: int, texts: list[str]) -> str:
    """Return a step's entry in samples.txt. Lines that look like a heading are indented by a space."""
    written = "".join(LIKE_A_HEAD.sub(" ", text.rstrip()) + "\n\n" for text in texts)
    return f"=== step {step} ===\n{written}"


def event_of(line: bytes, metrics: Path, number: int) -> dict[str, Any]:
    """Parse a line of metrics.jsonl. UserError if it isn't an event."""
    try:
        event = json.loads(line.decode("utf-8"))
        if type(event["step"]) is not int or event["step"] < 0:
            raise TypeError("no step")
        return event
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{metrics} is damaged: line {number} is not an event with a step. Remove that line and resume again."
        ) from error
