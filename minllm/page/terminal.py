"""Printing that doesn't fail, whatever characters the terminal supports."""

from __future__ import annotations

import io
import logging
import os
import sys

from minllm.errors import printable

BROKEN_PIPE = 141
"""The exit code after a broken pipe, as in shells: 128 + SIGPIPE."""


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
