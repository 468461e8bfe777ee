"""The study on disk: which trials a search has begun, with which settings, and what came of them.

The process that asks and tells has it open, and so has each trial, to report and to learn whether it should go on.
Any of them may be killed at any moment, and the disk may be full. So what a process leaves half done is mended by
those that come after:

a lock            the kernel lifts when its holder dies
half a line       is cut off by the next who writes to the journal
half a trial      waits to be run again, under its number and with its settings (`put_back`)
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from minllm.errors import UserError, first_line, printable, suggest

if TYPE_CHECKING:
    from sqlalchemy import URL

JOURNAL = "study.journal"
APPENDED = (JOURNAL, f"{JOURNAL}.flock", ".lock")
"""The files of a study's folder that are written in place."""


def open_study(
    name: str,
    storage: str | None,
    folder: Path,
    *,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """Return the study of that name, and make it if there is none: in a database, or else in `folder`'s journal.

    Raises:
        UserError: the database can't be used, the journal is damaged, or the study is of another kind.
    """
    with storage_errors(storage):
        place = journal(folder / JOURNAL) if storage is None else database(storage)
        options = {"study_name": name, "storage": place, "sampler": sampler, "pruner": pruner}
        try:  # first, because to create what there is leaves a line in the journal each time
            study = optuna.load_study(**options)
        except KeyError:
            study = optuna.create_study(**options, direction="minimize", load_if_exists=True)
    if study.directions != [StudyDirection.MINIMIZE]:
        raise UserError(
            f"The study '{name}' is of another kind: it doesn't look for the smallest of one figure."
            " Give this search another name: sweep.name=<name>."
        )
    return study


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only search in `folder`; the system lifts the lock of one that is killed.

    Raises:
        UserError: there is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    refuse_folder(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = path.read_text(encoding="utf-8", errors="replace") or "a process that has just begun"
        raise UserError(
            f"A search is at work in {folder} already: {holder}. Wait until it's done, stop it, or give this one"
            " another name: sweep.name=<name>."
        ) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        path.write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        yield
    finally:
        lock.release()


class Leader:
    """Which search leads a study in a database, where a lock in a folder says nothing to searches elsewhere.

    The leader writes the time into the study again and again, by its own clock. The clocks of two machines differ, so
    a record that can't be judged by its time is watched: it changes only if its leader is alive.

    Raises:
        UserError: another search leads the study.
    """

    BEAT_SECONDS, DEAD_SECONDS = 30, 120

    def __init__(self, study: optuna.Study, folder: Path):
        self.study, self.beaten = study, -math.inf
        self.machine = platform.node()
        self.where = f"{folder.resolve()} on {self.machine}"
        other = study.user_attrs.get("leader")
        # whoever led it from this folder is gone, because we hold the folder's lock
        if other and other["where"] != self.where and self._is_alive(other):
            raise UserError(
                f"Another search leads the study '{study.study_name}', from {other['where']}. Wait until it has"
                " finished, stop it, or give this one another name: sweep.name=<name>."
            )
        self.beat()

    def _is_alive(self, other: dict[str, Any]) -> bool:
        silent_seconds = time.time() - other["beat"]
        if 0 <= silent_seconds < self.DEAD_SECONDS:
            return True
        if silent_seconds >= self.DEAD_SECONDS and other["where"].endswith(f" on {self.machine}"):
            return False  # one clock, and long ago by it
        watched_seconds = 2 * self.BEAT_SECONDS
        where = printable(other["where"])
        print(
            f"A search led this study from {where}, whose clock differs from this machine's. Waiting up to"
            f" {watched_seconds} s to see whether it is still running.",
            file=sys.stderr,
        )
        until = time.monotonic() + watched_seconds
        while time.monotonic() < until:
            time.sleep(1)
            if self.study.user_attrs.get("leader") != other:
                return True
        return False

    def beat(self) -> None:
        """Say that the search is alive, if it's time to."""
        if time.monotonic() - self.beaten > self.BEAT_SECONDS:
            self.study.set_user_attr("leader", {"where": self.where, "beat": time.time()})
            self.beaten = time.monotonic()

    def leave(self) -> None:
        self.study.set_user_attr("leader", None)


def put_back(study: optuna.Study) -> list[int]:
    """Let the trials wait that are running, as the study has it, and return their numbers.

    This is for one that is `alone`, before its first trial: whoever ran them is dead. The next `ask` takes them up
    again, the lowest number first. Settings already chosen stay, and those that weren't are chosen then. What they
    reported stays too: a run from the start reports the same steps again, and of two reports for one step the first
    counts. That is harmless, being the same run's; the pruner only knows its later figures a little earlier.
    """
    left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in left:
        # a study's own methods only know how to finish a trial
        study._storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)
    return [trial.number for trial in left]


# ---- the journal: a line a change, appended under a lock -----------------------------------------


def journal(path: Path) -> BaseStorage:
    """Return the storage that is a file of lines. UserError if a line is damaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_folder(path)
    refuse_folder(path.with_name(f"{path.name}.flock"))
    remove_stale_lock(path)
    lock = JournalLock(path)
    backend = JournalFileBackend(str(path), lock_obj=lock)
    lock.acquire()  # so that nobody is in the middle of a line
    try:
        check_lines(path)
    finally:
        lock.release()
    try:
        return JournalStorage(backend)
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{path} is damaged: a record in it can't be used ({type(error).__name__}: {first_line(error)}). Give this"
            " search another name: sweep.name=<name>."
        ) from error


def refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, where a file is expected. Remove it, or give this search another name:"
            " sweep.name=<name>."
        )


class JournalLock:
    """The kernel's lock beside the journal; who takes or gives it back sees to it that the last line is whole.

    Optuna's own locks are files that exist, and that of a killed process keeps everybody waiting for half a minute.
    They share a base class, which isn't public, and has no more than these two methods.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lock = FileLock(path.with_name(f"{path.name}.flock"))

    def acquire(self) -> bool:
        self.lock.acquire(poll_interval=0.001)  # it's held as long as it takes to write one line
        try:
            cut_half_a_line(self.path)
        except BaseException:
            self.lock.release()
            raise
        return True

    def release(self) -> None:
        try:
            cut_half_a_line(self.path)  # our own, if the disk was full
        finally:
            self.lock.release()


def cut_half_a_line(path: Path) -> None:
    """Cut what follows the last line's end: a writer was killed there, or the disk was full.

    Nobody has read it: Optuna reads without a lock, but passes over a last line that has no end. A line that has one
    is never cut, even if its writer was told that it failed, for others may have read it and count on its place.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read(1) not in (b"\n", b""):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def check_lines(path: Path) -> None:
    """Raise UserError if a line isn't one of Optuna's, which Optuna itself would only say without its number."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                is_record = {"op_code", "worker_id"} <= json.loads(line).keys()
            except (ValueError, AttributeError, RecursionError):
                is_record = False
            if not is_record:
                raise UserError(
                    f"{path} is damaged: line {number} is no record. Cut the file before that line, which loses what"
                    f" came later (head -n {number - 1}), or give this search another name."
                )


def remove_stale_lock(path: Path) -> None:
    """Remove a lock of Optuna's own that a killed tool has left, such as a dashboard in which somebody made a note.

    We don't heed it, but the next such tool would wait. Optuna holds it for one line, and takes one of half a minute
    for abandoned; a younger one may be in use.
    """
    lock = path.with_name(f"{path.name}.lock")
    with contextlib.suppress(FileNotFoundError):
        if time.time() - lock.lstat().st_mtime > 30 and not lock.is_dir():
            lock.unlink()


# ---- databases: what may be wrong with them, in sentences that give no password away -------------


@contextlib.contextmanager
def storage_errors(storage: str | None) -> Iterator[None]:
    """Raise UserError for what a database refuses, or if it's gone; to be around all that is done with a study."""
    if storage is None:
        yield
        return
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        url = parsed(storage)
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
        said = first_line(getattr(cause, "orig", None) or cause)
        for secret in secrets(url):
            said = said.replace(secret, "***")
        raise UserError(
            f"The study's database {bare(url)} can't be used: {said}. Mend that, and type the same again: the study"
            " goes on where it was."
        ) from error


def database(storage: str) -> BaseStorage:
    """Return the storage that is a database with a URL. UserError if the URL can't be meant, or a driver is missing."""
    from sqlalchemy.exc import NoSuchModuleError

    url = parsed(storage)
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise UserError(
            "A database in memory can't be shared by the trials. Name a file: sqlite:///<folder>/study.db"
        )
    try:
        # Optuna takes braces in a URL for a template's
        return RDBStorage(storage.replace("{", "{{").replace("}", "}}"), engine_kwargs=engine_options(url))
    except NoSuchModuleError:
        known = ("sqlite", "postgresql", "mysql")
        raise UserError(f"There is no database '{url.drivername}'.{suggest(url.drivername, known)}") from None
    except ImportError as error:
        name = getattr(error.__cause__, "name", None)
        if url.get_backend_name() == "postgresql":
            cure = "pip install 'psycopg[binary]', and let its URL begin with postgresql+psycopg://"
        else:
            cure = f"Python has no module '{name}'"
        raise UserError(f"The driver of the database {bare(url)} isn't installed: {cure}") from error
    except RuntimeError as error:
        raise UserError(
            f"The study's database {bare(url)} is of another version of Optuna. Type"
            " `optuna storage upgrade --storage <its URL>`, or name another database."
        ) from error


def parsed(storage: str) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(storage)
    except (ArgumentError, ValueError):
        raise UserError(
            "The study's storage is no database's URL. Write sqlite:///<file>, or"
            " postgresql://<user>:<password>@<host>:<port>/<database>, in which @, : and / within a password are %40,"
            " %3A and %2F; or null for a file of its own."
        ) from None  # the cause may have the password in it


def secrets(url: URL) -> list[str]:
    """Return what nobody else may read of a URL."""
    named = [value for name, value in url.query.items() if "pass" in name]
    return [str(one) for one in (url.password, *named) if one]


def bare(url: URL) -> str:
    """A URL without what may be secret: the user, the password, and the driver's options."""
    return f"{url.get_backend_name()}://{url.host or ''}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def engine_options(url: URL) -> dict[str, Any]:
    """Options for many processes with one connection each, which is idle for hours between two reports."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 60}}  # it has one writer at a time; the others wait
    # a connection that a firewall has dropped is replaced, and a host that says nothing isn't waited for
    patience = {"connect_timeout": 10} if url.get_backend_name() == "postgresql" else {}
    return {"pool_pre_ping": True, "connect_args": patience}
