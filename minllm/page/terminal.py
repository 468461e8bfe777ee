"""Printing that works on terminals of any encoding, and JSON answers on standard output."""

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
"""The stream that `answer` writes to while standard output is reserved for JSON."""


@contextlib.contextmanager
def json_output() -> Iterator[None]:
    """Redirect everything that is printed, also by child processes, to stderr, except what `answer` writes."""
    global _answers
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with open(stdout, "w", encoding="utf-8", closefd=False) as _answers:
            os.dup2(2, 1)
            with contextlib.redirect_stdout(sys.stderr):
                yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        _answers = None


def answer(content: Mapping[str, Any]) -> None:
    """Write a line of JSON if standard output is reserved for it; see `json_output`."""
    if _answers is not None:
        _answers.write(json.dumps(content, allow_nan=False) + "\n")
        _answers.flush()


@contextlib.contextmanager
def without_answers() -> Iterator[None]:
    """Ignore what `answer` is given within this context, because the answer is that of the whole command."""
    global _answers
    outer, _answers = _answers, None
    try:
        yield
    finally:
        _answers = outer


def escape_unencodable() -> None:
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
