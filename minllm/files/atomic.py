"""Atomic writes and file locks, which never follow a link out of a folder."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

from minllm.errors import UserError

if TYPE_CHECKING:
    from filelock import FileLock


def write_text(path: Path, text: str) -> None:
    """Write `path` atomically: write a temporary file in the same folder, then rename it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.unlink(missing_ok=True)  # it may be a symbolic or hard link
        with open(temporary, "wb", opener=without_links) as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def acquire_lock(path: Path, seconds: float, refusal: str) -> FileLock:
    """Acquire and return the file lock `path`; the system releases it if the process is killed.

    On file systems without locks, nothing is locked.

    Raises:
        UserError: another process holds it for longer than `seconds` (the message is `refusal`), or it's a link.
    """
    from filelock import FileLock, Timeout

    if path.is_symlink():
        raise refused(path, "is a symbolic link")
    lock = FileLock(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, but should be a file. Remove it.")
    try:
        lock.acquire(timeout=seconds)
    except NotImplementedError:
        pass
    except Timeout as error:
        raise UserError(refusal) from error
    return lock


def without_links(path: str, flags: int) -> int:
    """An opener for `open(..., opener=without_links)` that fails if `path` is a symbolic link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def contents(path: Path) -> bytes:
    """Return a file's bytes; empty if it doesn't exist or isn't a regular file."""
    return path.read_bytes() if path.is_file() else b""


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file: it detects damage, and takes a fraction of the time of reading from disk."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def set_aside(path: Path) -> None:
    """Move a path out of the way by renaming it; a symbolic link is removed, but not its target."""
    if path.is_symlink():
        path.unlink()
        return
    free = (path.with_name(f"{path.name}.aside-{number}") for number in range(1, 10_000))
    os.rename(path, next(target for target in free if not os.path.lexists(target)))


def refuse_links(folder: Path, appended: Container[str]) -> None:
    """Raise UserError if writing a run to `folder` could change or delete anything outside of it.

    Args:
        appended: the names of files that are written in place, which must not be hard links.
    """
    root = folder.resolve()
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            # W&B makes links to its latest files
            of_wandb = path.relative_to(folder).parts[0] == "wandb" and path.is_symlink()
            if not (of_wandb and root in Path(os.path.realpath(path)).parents):
                refuse_link(path, path.parent == folder and path.name in appended)


def refuse_links_at_top(folder: Path, appended: Container[str]) -> None:
    """Raise UserError as `refuse_links` does, but only for the direct contents of `folder`."""
    for path in folder.iterdir() if folder.is_dir() else ():
        refuse_link(path, path.name in appended)


def refuse_link(path: Path, is_appended: bool) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise refused(path, "is a symbolic link")
    if stat.S_ISREG(status.st_mode):
        if is_appended and status.st_nlink > 1:
            raise refused(path, "is a hard link")
    elif not stat.S_ISDIR(status.st_mode):
        raise refused(path, "is not a regular file")


def refused(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} {what}, so writing to it could change files outside of its folder. Replace it with a copy of its"
        " target, or remove it."
    )
