"""What is printed reaches whoever reads it, whatever their terminal can show."""

from __future__ import annotations

import io
import logging
import os
import sys

from minllm.errors import printable

BROKEN_PIPE = 141
"""The exit code when nobody reads what is printed any more, as shells have it: 128 + SIGPIPE."""


def write_anything() -> None:
    """Have characters that the terminal's or file's encoding lacks written as escapes, instead of failing."""
    logging.raiseExceptions = False  # a log line that nobody reads any more, as in `… | head`, is no error
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the shell has closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_code(end: SystemExit) -> int:
    """Return the code that a process ends with, as Python does: an idea's own code may end it with a text."""
    if end.code is None or isinstance(end.code, int):
        return int(end.code or 0)
    print(printable(str(end.code)), file=sys.stderr)
    return 1
