"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from pathlib import Path

# control characters but \t and \n, and what changes the direction of the text around it
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


# what stops a file from being written or a folder from being made, whoever tries
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


# ---- a full disk, a forbidden folder, too little memory -----------------------------------------


def disk_error(error: BaseException) -> UserError | None:
    """Return the sentence for a full disk, or a folder that can't be found or written to; None for other trouble."""
    if isinstance(error, RuntimeError) and str(error).startswith("Could not determine home directory"):
        return UserError(
            "There is no such user, or no HOME, for a path that begins with ~. Write out the path."
        )
    if not isinstance(error, OSError) or error.errno not in DISK_TROUBLE:
        return None
    return UserError(disk_sentence(error))


def memory_error(error: BaseException) -> UserError | None:
    """Return the sentence for memory that doesn't even suffice to load the libraries; None for other trouble."""
    loading = isinstance(error, ImportError) and "map segment" in str(error)
    if (
        loading
        or isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    ):
        return UserError(
            "Memory ran out. End other programs that hold memory, or raise this shell's limit (ulimit -v)."
        )
    return None


def disk_sentence(error: OSError) -> str:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return f"The disk is full{where}. Make room, or write elsewhere with hydra.run.dir=<folder>."
    return f"Can't write{where}: {error.strerror}. Choose another place with hydra.run.dir=<folder>."


def is_full(error: BaseException | None) -> bool:
    """Say whether `error`, or one that it came from, means that there's no room left on the disk."""
    if error is None:
        return False
    return (isinstance(error, OSError) and error.errno in FULL) or is_full(
        error.__cause__ or error.__context__
    )
