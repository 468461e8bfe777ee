"""The exception for mistakes of the user, and messages for failures of the machine."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from pathlib import Path

# control characters except \t and \n, and marks that change the direction of the surrounding text
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


# errors that prevent writing a file or creating a folder
DISK_TROUBLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EIO,
}


FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """A mistake that the user can correct: the message says what is wrong, where, and what to type instead.

    The command line prints it without a traceback and exits with code 2. Any other exception is a bug in
    minllm and keeps its traceback. Passwords in URLs are masked.
    """

    def __str__(self) -> str:
        return without_passwords(super().__str__())


def without_passwords(text: str) -> str:
    """Return text in which the user and password of each URL are masked: https://***@host."""
    return re.sub(r"(?<=://)[^\s/@'\"]*:[^\s@]*@", "***@", text)


def first_line(message: object) -> str:
    """Return the first line of a library's error message, without its full stop."""
    lines = str(message).strip().splitlines() or [type(message).__name__]
    return re.sub(r"\s+", " ", lines[0]).rstrip(".")


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for a near miss, and otherwise the list of all choices."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    near = near or [name for name in known if name.lower() == word.lower().strip("\"' ,")]
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Choose one of: {', '.join(known)}." if known else ""


def neighbour(path: Path) -> str:
    """Return `` Did you mean 'x'?`` if the parent folder of a missing path has a similar name."""
    names = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean '{path.with_name(near[0])}'?" if near else ""


def printable(text: str) -> str:
    r"""Escape control characters as \xNN and bidirectional marks as \uNNNN, so that a terminal doesn't obey them.

    Line breaks and tabs are kept.
    """
    return UNPRINTABLE.sub(lambda match: escaped(match[0]), text)


def escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


# ---- full disk, missing permission, out of memory ------------------------------------------------


def disk_error(error: BaseException) -> UserError | None:
    """Return the error to show for a full disk or a path that can't be written; None for other errors."""
    if isinstance(error, RuntimeError) and str(error).startswith("Could not determine home directory"):
        return UserError(
            "A path begins with ~, but its user doesn't exist or HOME isn't set. Write out the full path."
        )
    if not isinstance(error, OSError) or error.errno not in DISK_TROUBLE:
        return None
    return UserError(disk_sentence(error))


def memory_error(error: BaseException) -> UserError | None:
    """Return the error to show if memory ran out, also while libraries were loaded; None for other errors."""
    loading = isinstance(error, ImportError) and "map segment" in str(error)
    if (
        loading
        or isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    ):
        return UserError("Out of memory. Close other programs, or raise this shell's limit (ulimit -v).")
    return None


def disk_sentence(error: OSError) -> str:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return f"The disk is full{where}. Free some space, or choose another folder: hydra.run.dir=<folder>."
    return f"Can't write{where}: {error.strerror}. Choose another folder: hydra.run.dir=<folder>."


def is_full(error: BaseException | None) -> bool:
    """Whether `error`, or an exception that caused it, means that the disk is full."""
    if error is None:
        return False
    return (isinstance(error, OSError) and error.errno in FULL) or is_full(
        error.__cause__ or error.__context__
    )
