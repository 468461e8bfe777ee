"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

# control characters but \t and \n, and what changes the direction of the text around it
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """Something the user can mend: one sentence that says what is wrong, where, and what to type instead.

    The command line prints it without a traceback and exits with code 2. Any other exception is a bug of
    minllm's and keeps its traceback. Passwords in URLs are never shown.
    """

    def __str__(self) -> str:
        return without_passwords(super().__str__())


def without_passwords(text: str) -> str:
    """Return text in which the user and password of each URL are masked: https://***@host."""
    return re.sub(r"(?<=://)[^\s/@'\"]*:[^\s@]*@", "***@", text)


def first_line(message: object) -> str:
    """Return the first line of a library's message, without its full stop: what follows is meant for developers."""
    lines = str(message).strip().splitlines() or [type(message).__name__]
    return re.sub(r"\s+", " ", lines[0]).rstrip(".")


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for a near miss, and the list of what there is otherwise."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    near = near or [one for one in known if one.lower() == word.lower().strip("\"' ,")]
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Choose one of: {', '.join(known)}." if known else ""


def neighbour(path: Path) -> str:
    """Return `` Did you mean 'x'?`` where a file or folder beside a missing one is called nearly the same."""
    names = [beside.name for beside in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean '{path.with_name(near[0])}'?" if near else ""


def printable(text: str) -> str:
    r"""Return text that a terminal shows and doesn't obey: control characters as \xNN, bidirectional marks as \uNNNN.

    Line breaks and tabs stay.
    """
    return UNPRINTABLE.sub(lambda found: escaped(found[0]), text)


def escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
