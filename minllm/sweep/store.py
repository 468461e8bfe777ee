"""The study on disk: the trials of a search, their parameters and their results.

The search process has it open, and so does each trial, which reports to it and asks whether it should be pruned. Any of
them may be killed at any moment, and the disk may be full, so each kind of unfinished work is recovered later:

a held lock       is released by the kernel when its holder dies
a partial line    is cut off by the next process that writes to the journal
a partial trial   is queued again, under its number and with its parameters (`requeue_interrupted`)
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
"""Files of a study's folder that are written in place rather than replaced."""


def open_study(
    name: str,
    storage: str | None,
    folder: Path,
    *,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """Load the study of that name, or create it: in the database `storage`, or else in `folder`'s journal.

    Raises:
        UserError: the database can't be used, the journal is damaged, or the study wasn't made by a search.
    """
    with storage_errors(storage):
        place = journal(folder / JOURNAL) if storage is None else database(storage)
        options = {"study_name": name, "storage": place, "sampler": sampler, "pruner": pruner}
        try:  # first, because create_study appends to the journal even if the study exists
            study = optuna.load_study(**options)
        except KeyError:
            study = optuna.create_study(**options, direction="minimize", load_if_exists=True)
    if study.directions != [StudyDirection.MINIMIZE]:
        raise UserError(
            f"The study '{name}' doesn't minimize a single metric. Give this search another name: sweep.name=<name>."
        )
    return study


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the file lock of `folder`, so that no other search uses it; the kernel releases it if we are killed.

    Raises:
        UserError: another search holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    refuse_folder(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = path.read_text(encoding="utf-8", errors="replace") or "a process that has just started"
        raise UserError(
            f"A search is already running in {folder}: {holder}. Wait for it to finish, stop it, or give this search"
            " another name: sweep.name=<name>."
        ) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        path.write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        yield
    finally:
        lock.release()


class Leader:
    """The leader process of a study in a database, which searches on other machines can't see from a file lock.

    The leader regularly writes the time into the study, by its own clock. The clocks of two machines may differ, so
    a record whose age is unclear is watched for a while: it only changes if its leader is alive.

    Raises:
        UserError: another search leads the study.
    """

    BEAT_SECONDS, DEAD_SECONDS = 30, 120

    def __init__(self, study: optuna.Study, folder: Path):
        self.study, self.last_beat = study, -math.inf
        self.machine = platform.node()
        self.where = f"{folder.resolve()} on {self.machine}"
        leader = study.user_attrs.get("leader")
        # a leader in this folder must be dead, because we hold the folder's lock
        if leader and leader["where"] != self.where and self._is_alive(leader):
            raise UserError(
                f"Another search leads the study '{study.study_name}', from {leader['where']}. Wait for it to finish,"
                " stop it, or give this search another name: sweep.name=<name>."
            )
        self.beat()

    def _is_alive(self, leader: dict[str, Any]) -> bool:
        silent_seconds = time.time() - leader["beat"]
        if 0 <= silent_seconds < self.DEAD_SECONDS:
            return True
        if silent_seconds >= self.DEAD_SECONDS and leader["where"].endswith(f" on {self.machine}"):
            return False  # the same clock, so the age can be trusted
        watched_seconds = 2 * self.BEAT_SECONDS
        where = printable(leader["where"])
        print(
            f"A search led this study from {where}, whose clock differs from this machine's. Waiting up to"
            f" {watched_seconds} s to see whether it is still running.",
            file=sys.stderr,
        )
        until = time.monotonic() + watched_seconds
        while time.monotonic() < until:
            time.sleep(1)
            if self.study.user_attrs.get("leader") != leader:
                return True
        return False

    def beat(self) -> None:
        """Record that the search is alive, if the last record is old enough."""
        if time.monotonic() - self.last_beat > self.BEAT_SECONDS:
            self.study.set_user_attr("leader", {"where": self.where, "beat": time.time()})
            self.last_beat = time.monotonic()

    def leave(self) -> None:
        self.study.set_user_attr("leader", None)


def requeue_interrupted(study: optuna.Study) -> list[int]:
    """Queue again the trials that the study records as running, and return their numbers.

    Call it while holding the `folder_lock` with no trial running, so that the processes that ran them are dead. The
    next `ask` returns them, lowest number first. Parameters already chosen are kept, and the others are chosen then.
    Reported values are kept too: the rerun reports the same steps again, and Optuna keeps the first report of a step.
    Both come from the same run, so the pruner merely knows the later values a little early.
    """
    interrupted = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in interrupted:
        # Study's public methods can only finish a trial
        study._storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)
    return [trial.number for trial in interrupted]


# ---- the journal: one line per change, appended under a lock -------------------------------------


def journal(path: Path) -> BaseStorage:
    """Return the storage of a journal file. UserError if a line is damaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_folder(path)
    refuse_folder(path.with_name(f"{path.name}.flock"))
    remove_stale_lock(path)
    lock = JournalLock(path)
    backend = JournalFileBackend(str(path), lock_obj=lock)
    lock.acquire()  # no process may be in the middle of a line
    try:
        check_lines(path)
    finally:
        lock.release()
    try:
        return JournalStorage(backend)
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{path} is damaged: a record can't be read ({type(error).__name__}: {first_line(error)}). Give this"
            " search another name: sweep.name=<name>."
        ) from error


def refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, but must be a file. Remove it, or give this search another name: sweep.name=<name>."
        )


class JournalLock:
    """A kernel file lock beside the journal; acquiring or releasing it removes a partial last line.

    Optuna's own locks are marker files, and one left by a killed process blocks everybody for half a minute. Their base
    class isn't public; it has only these two methods.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lock = FileLock(path.with_name(f"{path.name}.flock"))

    def acquire(self) -> bool:
        self.lock.acquire(poll_interval=0.001)  # it's only held while one line is written
        try:
            truncate_partial_line(self.path)
        except BaseException:
            self.lock.release()
            raise
        return True

    def release(self) -> None:
        try:
            truncate_partial_line(self.path)  # our own, if the disk was full
        finally:
            self.lock.release()


def truncate_partial_line(path: Path) -> None:
    """Truncate a partial last line, left by a writer that was killed or by a full disk.

    Nobody has read it: Optuna reads without a lock, but skips a last line without a newline. A complete line is never
    cut, even if its writer saw an error, because others may have read it and rely on its line number.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read(1) not in (b"\n", b""):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def check_lines(path: Path) -> None:
    """Raise UserError with the line's number if a line isn't a record of Optuna's."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                is_record = {"op_code", "worker_id"} <= json.loads(line).keys()
            except (ValueError, AttributeError, RecursionError):
                is_record = False
            if not is_record:
                raise UserError(
                    f"{path} is damaged: line {number} isn't a record. Truncate the file before that line, which loses"
                    f" everything after it (head -n {number - 1}), or give this search another name: sweep.name=<name>."
                )


def remove_stale_lock(path: Path) -> None:
    """Remove a lock file of Optuna's own that was left by a killed tool, such as a dashboard.

    We don't use that lock, but the next such tool would wait for it. Optuna holds it while it writes one line, and
    considers it abandoned after 30 seconds; a younger one may be in use.
    """
    lock = path.with_name(f"{path.name}.lock")
    with contextlib.suppress(FileNotFoundError):
        if time.time() - lock.lstat().st_mtime > 30 and not lock.is_dir():
            lock.unlink()


# ---- databases: errors are reported without revealing passwords ----------------------------------


@contextlib.contextmanager
def storage_errors(storage: str | None) -> Iterator[None]:
    """Turn database errors into UserError; wrap every access to a study in it."""
    if storage is None:
        yield
        return
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        url = parsed(storage)
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
        message = first_line(getattr(cause, "orig", None) or cause)
        for secret in secrets(url):
            message = message.replace(secret, "***")
        raise UserError(
            f"The study's database {without_credentials(url)} can't be used: {message}. Fix that and run the"
            " same command again to continue."
        ) from error


def database(storage: str) -> BaseStorage:
    """Return the storage of a database URL. UserError if the URL is invalid or a driver is missing."""
    from sqlalchemy.exc import NoSuchModuleError

    url = parsed(storage)
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise UserError(
            "Trials can't share a database in memory. Use a file: sweep.storage=sqlite:///<folder>/study.db"
        )
    try:
        # Optuna treats braces in a URL as a template
        return RDBStorage(storage.replace("{", "{{").replace("}", "}}"), engine_kwargs=engine_options(url))
    except NoSuchModuleError:
        known = ("sqlite", "postgresql", "mysql")
        raise UserError(f"Unknown database '{url.drivername}'.{suggest(url.drivername, known)}") from None
    except ImportError as error:
        name = getattr(error.__cause__, "name", None)
        if url.get_backend_name() == "postgresql":
            cure = "run pip install 'psycopg[binary]', and start the URL with postgresql+psycopg://"
        else:
            cure = f"there is no Python module '{name}'"
        raise UserError(
            f"The driver of the database {without_credentials(url)} isn't installed: {cure}"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"The study's database {without_credentials(url)} was made by another version of Optuna. Run"
            " `optuna storage upgrade --storage <its URL>`, or use another database."
        ) from error


def parsed(storage: str) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(storage)
    except (ArgumentError, ValueError):
        raise UserError(
            "sweep.storage isn't a database URL. Write sqlite:///<file>, or"
            " postgresql://<user>:<password>@<host>:<port>/<database> with @, : and / in a password written as %40,"
            " %3A and %2F; or null for a journal in the study's folder."
        ) from None  # the cause may contain the password


def secrets(url: URL) -> list[str]:
    """Return the passwords in a URL."""
    named = [value for name, value in url.query.items() if "pass" in name]
    return [str(password) for password in (url.password, *named) if password]


def without_credentials(url: URL) -> str:
    """Return a URL without its user, password and driver options, which may be secret."""
    return f"{url.get_backend_name()}://{url.host or ''}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def engine_options(url: URL) -> dict[str, Any]:
    """Return engine options for many processes with one connection each, which may idle for hours between reports."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 60}}  # SQLite has one writer at a time; the others wait
    # replaces a connection that a firewall has dropped, and doesn't wait for a host that never answers
    patience = {"connect_timeout": 10} if url.get_backend_name() == "postgresql" else {}
    return {"pool_pre_ping": True, "connect_args": patience}
