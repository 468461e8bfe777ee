"""Read the files of a run and check what they contain.

A run's folder may come from anyone, and may be damaged in any way. Everything that a comparison uses is checked here,
so that later code can rely on its types.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml

from minllm.errors import printable
from minllm.objective import Bound
from minllm.runs.documents import DOCUMENTS, DocumentLosses
from minllm.runs.outcome import FILE, Reason, State
from minllm.schema.checking import describe, fits
from minllm.schema.options import Fraction, Range

MIB = 2**20
LIMITS = {
    **{"config.yaml": MIB, "summary.json": MIB, "environment.json": MIB, FILE: MIB},
    DOCUMENTS: 256 * MIB,
}
"""The maximum size of each file in bytes; LARGEST for files that aren't listed."""
LARGEST = 1024 * MIB

Amount = Annotated[float, Range("a number from 0 to 1e30", 0, high=1e30)]
Whole = Annotated[int, Range("a whole number from 0 to 1e30", 0, high=1e30)]
Loss = Annotated[float, Range("a number from 0 to 1e6", 0, high=1e6)]
Signed = Annotated[float, Range("a number from -1e6 to 1e6", -1e6, high=1e6)]

SUMMARY: Mapping[str, Any] = {
    "val_bpb": Loss,
    "validation_text": str,
    "seed": Whole,
    "params": Whole,
    "params_active": Whole,
    "params_non_embedding": Whole,
    "flops_per_token": Amount,
    "state_bytes_per_sequence": Amount | None,
    "tokens": Whole,
    "tokens_per_second": Amount,
    "wall_seconds": Amount,
    "peak_memory_bytes": Amount | None,
    "decisions": dict[str, Any],
}
SUMMARY_WHERE_GIVEN: Mapping[str, Any] = {
    "floor_bpb": Loss | None,
    "bpb_above_floor": Signed | None,
    "device": str,
    "val_bound": Bound,
    "val_accuracy": Fraction,
    "val_exact": Fraction,
}
DECISIONS_WHERE_GIVEN: Mapping[str, Any] = {"precision": str | None, "compile": bool | None}

ENVIRONMENT: Mapping[str, Any] = {
    "versions": dict[str, str | None],
    "cpu": str,
    "gpu": str | None,
    "threads": Whole,
    "git": dict[str, Any],
}
VERSIONS: Mapping[str, Any] = {"torch": str | None, "minllm": str | None}
GIT: Mapping[str, Any] = {"commit": str | None, "dirty": bool}

CONFIG: Mapping[str, Any] = {
    **dict.fromkeys(("model", "norm", "tokenizer"), dict[str, Any]),
    **{"seed": Whole, "choices": dict[str, str | list[str] | None]},
}
CONFIG_WHERE_GIVEN: Mapping[str, Any] = {
    **dict.fromkeys(("data", "optim", "train", "logger"), dict[str, Any]),
    "extensions": list[str] | None,
    "typed": list[str] | None,
    "tags": list[str] | None,
}
SECTIONS_WHERE_GIVEN: Mapping[str, Mapping[str, Any]] = {
    "optim": {"lr": Amount | None},
    "train": {"compile": bool | str | None, "stop_at_accuracy": Fraction | None},
    "logger": {"project": str | None, "group": str | None, "mode": str | None},
}

ENDING: Mapping[str, Any] = {"state": State, "text": str}
ENDING_WHERE_GIVEN: Mapping[str, Any] = {"reason": Reason | None}

EVENT: Mapping[str, Any] = {"step": Whole, "tokens": Amount, "seconds": Amount}
ROUNDING = 1e-4
"""The relative error allowed between the sum of the documents' losses and the total, which are summed differently."""
POINT = "val_bpb"
"""The key that distinguishes the points of a learning curve from other lines of metrics."""


class Damaged(Exception):
    """A file isn't what a run writes. The message is a sentence for users."""


class Diverged(Exception):
    """The validation loss is NaN or infinite."""


def read_text(folder: Path, name: str) -> str:
    """Return a file's text. Damaged if it isn't a regular UTF-8 file within its size limit."""
    content = read_bytes(folder, name)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"Its {name} is damaged: byte {error.start:,} isn't UTF-8.") from error


def read_bytes(folder: Path, name: str) -> bytes:
    """Return a file's content. Damaged if it isn't a regular file within its size limit.

    Pipes, which would block on opening, and devices are rejected before anything is read.
    """
    try:
        # non-blocking, because the file may be a pipe
        number = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK)
        try:  # `open` alone would leak the descriptor of a folder
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise Damaged(f"Its {name} is damaged: it isn't a regular file.")
            limit = LIMITS.get(name, LARGEST)
            with open(number, "rb", closefd=False) as file:
                content = file.read(limit + 1)
        finally:
            os.close(number)
    except OSError as error:
        raise Damaged(f"Its {name} can't be read: {error.strerror or error}.") from error
    if len(content) > limit:
        raise Damaged(f"Its {name} is damaged: it is larger than {limit // MIB:,} MiB.")
    return content


def is_there(folder: Path, name: str) -> bool:
    """Whether a folder has an entry of this name, of any kind."""
    return os.path.lexists(folder / name)


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the contents of summary.json.

    Raises:
        Damaged: a compared value is missing or has the wrong type.
        Diverged: the validation loss is NaN or infinite.
    """
    summary = read_object(folder, "summary.json")
    if is_not_finite(summary.get("val_bpb")):
        raise Diverged
    if "validation_text" not in summary and all(name in summary for name in ("val_bpb", "seed", "params")):
        raise Damaged(
            "It was made by an older minllm, which didn't record the validation text. Train it again."
        )
    check(summary, SUMMARY, "summary.json")
    check(summary, SUMMARY_WHERE_GIVEN, "summary.json", needed=False)
    check(summary["decisions"], DECISIONS_WHERE_GIVEN, "summary.json", "decisions.", needed=False)
    return summary


def is_not_finite(number: Any) -> bool:
    return isinstance(number, float) and not math.isfinite(number)


def read_environment(folder: Path) -> dict[str, Any]:
    """Return the contents of environment.json. Damaged if a compared value is missing or has the wrong type."""
    environment = read_object(folder, "environment.json")
    check(environment, ENVIRONMENT, "environment.json")
    check(environment["versions"], VERSIONS, "environment.json", "versions.")
    check(environment["git"], GIT, "environment.json", "git.")
    return environment


def read_config(folder: Path, extensions: Iterable[str] = ()) -> dict[str, Any]:
    """Return a run's configuration as plain values, which is fast enough for hundreds of runs.

    Raises:
        Damaged: config.yaml isn't what a run writes, or uses code from packages that `extensions` doesn't name.
    """
    text = read_text(folder, "config.yaml")
    if "${" in text:
        raise Damaged("Its config.yaml has interpolations (${…}), which minllm never writes.")
    try:
        content = yaml.load(text, Loader=Plain)
        refuse_unsupported(content, set())
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise Damaged("Its config.yaml is damaged: it isn't valid YAML.") from error
    if not isinstance(content, dict):
        raise Damaged("Its config.yaml is damaged or wasn't written by minllm: it isn't a mapping.")
    check(content, CONFIG, "config.yaml")
    check(content, CONFIG_WHERE_GIVEN, "config.yaml", needed=False)
    for section, kinds in SECTIONS_WHERE_GIVEN.items():
        check(content.get(section) or {}, kinds, "config.yaml", f"{section}.", needed=False)
    if unknown := [name for name in content.get("extensions") or [] if name not in set(extensions)]:
        named = ",".join([*extensions, *unknown])
        raise Damaged(f"It uses code from {', '.join(unknown)}. If you trust it, add 'extensions=[{named}]'.")
    return {**content, "extensions": list(extensions)}


class Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Reads YAML as OmegaConf does (1e-3 is a number), but into plain values and several times faster."""


Plain.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


def refuse_unsupported(value: Any, above: set[int]) -> None:
    """Raise ValueError for YAML that minllm never writes: values of special types, and aliases."""
    if isinstance(value, dict | list):
        if id(value) in above:
            raise ValueError("an alias")
        above.add(id(value))
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            raise ValueError("a key that isn't text")
        for inner in value.values() if isinstance(value, dict) else value:
            refuse_unsupported(inner, above)
    elif not isinstance(value, str | int | float | None):
        raise ValueError("a value of another type")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the events of metrics.jsonl; [] if there is no such file. Damaged if a line isn't an event.

    A last line without a newline was cut off when the run was killed, and is ignored.
    """
    if not is_there(folder, "metrics.jsonl"):
        return []
    *lines, _torn = read_text(folder, "metrics.jsonl").split("\n")
    return list(_events(lines))


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        event = parsed(line)
        if not isinstance(event, dict):
            raise Damaged(f"Its metrics.jsonl is damaged: line {number:,} isn't an event.")
        where = f"line {number:,}: "
        check(event, EVENT, "metrics.jsonl", where, needed=POINT in event)
        if POINT in event and not is_not_finite(event[POINT]):
            check(event, {POINT: Loss | None}, "metrics.jsonl", where)
        yield event


def read_documents(folder: Path, val_bpb: float) -> DocumentLosses | None:
    """Return the loss of each validation document; None if the run didn't record them.

    Args:
        val_bpb: the run's bits per byte, with which the documents must agree.

    Raises:
        Damaged: the file isn't what a run writes, or belongs to another evaluation.
    """
    if not is_there(folder, DOCUMENTS):
        return None
    try:
        losses = DocumentLosses.from_bytes(read_bytes(folder, DOCUMENTS))
    except ValueError as error:
        raise Damaged(f"Its {DOCUMENTS} is damaged: {error}.") from error
    if not math.isclose(losses.bpb, val_bpb, rel_tol=ROUNDING):
        raise Damaged(
            f"Its {DOCUMENTS} has {losses.bpb:.4f} bits per byte, but its summary.json {val_bpb:.4f}."
        )
    return losses


def read_ending(folder: Path) -> dict[str, Any]:
    """Return how a search's trial ended, from trial.json: its state, text and reason; {} if there is no such file."""
    if not is_there(folder, FILE):
        return {}
    ending = read_object(folder, FILE)
    check(ending, ENDING, FILE)
    check(ending, ENDING_WHERE_GIVEN, FILE, needed=False)
    return ending


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file."""
    content = parsed(read_text(folder, name))
    if not isinstance(content, dict):
        raise Damaged(f"Its {name} is damaged: it isn't a JSON object.")
    return content


def parsed(text: str) -> Any:
    """Return parsed JSON, or None if the text is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def check(
    content: Mapping[str, Any], kinds: Mapping[str, Any], file: str, above: str = "", *, needed: bool = True
) -> None:
    """Raise Damaged unless `content` has every key of `kinds` with a value of that kind.

    Args:
        above: a prefix for the key in messages.
        needed: whether the keys are required.
    """
    for key, kind in kinds.items():
        if key not in content and needed:
            raise Damaged(f"Its {file} has no '{above}{key}'.")
        value = content.get(key)
        if get_origin(kind) is dict and isinstance(value, Mapping):  # so that the message names the wrong key
            check(value, dict.fromkeys(value, get_args(kind)[1]), file, f"{above}{key}.")
        elif key in content and not fits(value, kind):
            raise Damaged(f"Its {file} is damaged: {above}{key} is {shown(value)}, not {describe(kind)}.")


def shown(value: Any) -> str:
    """Return a short text for a value in a message."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1e30:
        return "too large a number"
    text = printable(json.dumps(value, ensure_ascii=False, default=repr))
    return text if len(text) <= 40 else text[:39] + "…"
