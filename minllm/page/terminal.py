"""Printing that doesn't fail, whatever characters the terminal supports."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from minllm.errors import printable

BROKEN_PIPE = 141
"""The exit code after a broken pipe, as in shells: 128 + SIGPIPE."""

NOT_SETTLED = 3
"""The exit code of a comparison in which a contest is inconclusive, or doesn't hold among all ideas."""

_answers: TextIO | None = None
"""Where `answer` writes, while standard output has nothing but answers."""


@contextlib.contextmanager
def only_answers() -> Iterator[None]:
    """Send everything that is printed, also by processes that start here, to stderr, except what `answer` writes."""
    global _answers
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(kept, "w", encoding="utf-8", closefd=False) as _answers:
            os.dup2(2, 1)
            with contextlib.redirect_stdout(sys.stderr):
                yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        _answers = None


def answer(content: Mapping[str, Any]) -> None:
    """Write a line of JSON, if that is what standard output is for; see `only_answers`."""
    if _answers is not None:
        _answers.write(json.dumps(content, allow_nan=False) + "\n")
        _answers.flush()


def write_anything() -> None:
    """Write characters that the encoding of the terminal or file lacks as escapes, instead of failing."""
    logging.raiseExceptions = False  # writing a log to a closed pipe, as in `… | head`, isn't an error
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the shell has closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_code(end: SystemExit) -> int:
    """Return the exit code of a process, as Python does. Outside code may exit with a text, which is printed."""
    if end.code is None or isinstance(end.code, int):
        return int(end.code or 0)
    print(printable(str(end.code)), file=sys.stderr)
    return 1
