"""The study on disk, with what happens to it: processes killed as they write, and two at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import time
import warnings
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from minllm.errors import UserError
from minllm.sweep.store import JOURNAL, Leader, folder_lock, open_study, requeue_interrupted, storage_errors
from tests.commands import OF_DATABASES, PATIENCE

NAME = "size"

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__, *OF_DATABASES])
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request, tmp_path):
    """What `open_study` takes for a storage, of each kind, with nothing in it."""
    if request.param == "journal":
        return None
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return request.getfixturevalue("new_database")()


def states(study):
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


# ---- opening --------------------------------------------------------------------------------------


def test_journal_is_shared_between_processes(storage, tmp_path):
    study = open_study(NAME, storage, tmp_path / "a")
    trial = study.ask()
    trial.suggest_float("lr", 0, 1)
    trial.report(2.5, 1)
    study.tell(trial, 2.0)
    again = open_study(NAME, storage, tmp_path / "a").trials
    assert [one.value for one in again] == [2.0] and again[0].intermediate_values == {1: 2.5}
    assert again[0].params == trial.params
    assert [study.study_name for study in optuna.get_all_study_summaries(study._storage)] == [NAME]


def test_opening_an_existing_study_writes_nothing(tmp_path):
    open_study(NAME, None, tmp_path)
    before = (tmp_path / JOURNAL).read_bytes()
    open_study(NAME, None, tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_the_sampler_and_the_pruner_are_those_given(storage, tmp_path):
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    for _ in range(2):
        study = open_study(NAME, storage, tmp_path, sampler=sampler, pruner=pruner)
        assert study.sampler is sampler and study.pruner is pruner


@pytest.mark.parametrize("directions", [["maximize"], ["minimize", "minimize"]])
def test_a_study_of_another_kind_is_refused(storage, tmp_path, directions):
    place = open_study("mine", storage, tmp_path)._storage
    optuna.create_study(study_name="theirs", storage=place, directions=directions)
    with pytest.raises(UserError, match=r"'theirs' doesn't minimize.*another name"):
        open_study("theirs", storage, tmp_path)


# ---- processes that are killed, and several at once -----------------------------------------------


def search(storage, folder, weight):
    """Run trials until killed, and write down those that are told."""
    study = open_study(NAME, storage, folder)
    with (folder / f"told-{os.getpid()}").open("w", buffering=1) as told:
        while True:
            trial = study.ask()
            trial.suggest_float("lr", 0, 1)
            trial.set_user_attr("heavy", "x" * weight)  # several pages, which a kill can come between
            for step in (1, 2, 3):
                trial.report(step, step)
            study.tell(trial, trial.number)
            told.write(f"{trial.number}\n")


def told_by(pid, folder):
    path = folder / f"told-{pid}"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def begun(target, *args):
    process = processes.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def check_after_kills(storage, tmp_path, kills, chance):
    """Kill one of two writers again and again while a third, this process, writes too and is never kept waiting."""
    study = open_study(NAME, storage, tmp_path)
    mine, waits, killed = [], [], []
    writers = [begun(search, storage, tmp_path, 30_000) for _ in range(2)]
    for _ in range(kills):
        until = time.monotonic() + chance.uniform(0.05, 0.25)
        while time.monotonic() < until or not told_by(writers[0].pid, tmp_path):
            before = time.monotonic()
            trial = study.ask()
            waits.append(time.monotonic() - before)
            study.tell(trial, -1.0)
            mine.append(trial.number)
            time.sleep(0.01)  # SQLite lets the one that never rests have it all
        os.kill(writers[0].pid, signal.SIGKILL)
        writers[0].join()
        killed.append(writers[0].pid)
        before = time.monotonic()
        open_study(NAME, storage, tmp_path)
        waits.append(time.monotonic() - before)
        writers = [writers[1], begun(search, storage, tmp_path, 30_000)]
    for writer in writers:
        writer.kill()
        writer.join()
        killed.append(writer.pid)
    trials = open_study(NAME, storage, tmp_path).trials
    theirs = [number for pid in killed for number in told_by(pid, tmp_path)]
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len({*mine, *theirs}) == len(mine) + len(theirs), "two were given one number"
    assert all(trials[number].state is TrialState.COMPLETE for number in mine + theirs)
    assert all(trials[number].intermediate_values == {1: 1, 2: 2, 3: 3} for number in theirs)
    unfinished = [trial for trial in trials if trial.state is TrialState.RUNNING]
    assert len(unfinished) <= len(killed) and theirs
    assert max(waits) < 10, "Optuna's own lock is waited for for half a minute"


def test_killed_writers_do_no_harm(storage, tmp_path):
    check_after_kills(storage, tmp_path, kills=3, chance=random.Random(1))


@pytest.mark.slow  # thirty processes are started and killed
def test_thirty_kills(tmp_path):
    check_after_kills(None, tmp_path, kills=30, chance=random.Random(2))


def some_trials(storage, folder, count):
    study = open_study(NAME, storage, folder)
    for _ in range(count):
        trial = study.ask()
        trial.report(trial.number, 1)
        study.tell(trial, trial.number)


def test_two_write_at_once(storage, tmp_path):
    study = open_study(NAME, storage, tmp_path)
    both = [begun(some_trials, storage, tmp_path, 15) for _ in range(2)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert [trial.value for trial in study.trials] == list(range(30))


# ---- locks ----------------------------------------------------------------------------------------


def hold(folder, ready):
    with folder_lock(folder):
        ready.set()
        time.sleep(600)


def test_a_second_search_is_refused_until_the_first_is_dead(tmp_path):
    ready = processes.Event()
    first = begun(hold, tmp_path / "study", ready)
    assert ready.wait(PATIENCE)
    said = rf": process {first.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\. Wait"
    with pytest.raises(UserError, match=said), folder_lock(tmp_path / "study"):
        pass
    first.kill()
    first.join()
    with folder_lock(tmp_path / "study"):
        said = re.escape(f"process {os.getpid()} ")
        with pytest.raises(UserError, match=said), folder_lock(tmp_path / "study"):
            pass
    with folder_lock(tmp_path / "study"):
        pass


def hold_the_journal(folder, ready):
    study = open_study(NAME, None, folder)
    study._storage._backend._lock.acquire()
    ready.set()
    time.sleep(600)


def test_lock_of_a_killed_writer_is_released(tmp_path):
    study = open_study(NAME, None, tmp_path)
    ready = processes.Event()
    holder = begun(hold_the_journal, tmp_path, ready)
    assert ready.wait(PATIENCE)
    holder.kill()
    holder.join()
    study.ask()  # would wait forever


@pytest.mark.parametrize("age, stays", [(0, True), (25, True), (40, False)])
def test_stale_optuna_lock_is_removed(tmp_path, age, stays):
    study = open_study(NAME, None, tmp_path)
    lock = tmp_path / f"{JOURNAL}.lock"
    lock.symlink_to(tmp_path / JOURNAL)
    then = time.time() - age
    os.utime(lock, (then, then), follow_symlinks=False)
    open_study(NAME, None, tmp_path)
    study.ask()
    assert lock.is_symlink() == stays


# ---- trials that nobody runs any more -------------------------------------------------------------


def start_and_die(storage, folder):
    """One trial is done, one has all its settings and reports, one has half, and one has nothing."""
    study = open_study(NAME, storage, folder)
    study.tell(study.ask(), 1.0)
    whole, half, _ = study.ask(), study.ask(), study.ask()
    whole.suggest_float("lr", 0, 1)
    whole.suggest_int("depth", 1, 100)
    whole.report(5.0, 1)
    whole.report(4.0, 2)
    half.suggest_float("lr", 0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_trials_of_a_crash_are_run_again_as_they_were(storage, tmp_path):
    open_study(NAME, storage, tmp_path)
    begun(start_and_die, storage, tmp_path).join()
    study = open_study(NAME, storage, tmp_path)
    before = study.trials
    assert requeue_interrupted(study) == [1, 2, 3]
    assert requeue_interrupted(study) == []
    assert states(study) == ["COMPLETE", "WAITING", "WAITING", "WAITING"]
    again = [study.ask() for _ in range(4)]
    assert [trial.number for trial in again] == [1, 2, 3, 4]
    for trial in again:
        trial.suggest_float("lr", 0, 1)
        trial.suggest_int("depth", 1, 100)
    assert again[0].params == before[1].params
    assert again[1].params["lr"] == before[2].params["lr"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again[0].report(9.0, 1)
    assert "ignored" in str(said[0].message)
    again[0].report(3.0, 3)
    for trial in again:
        study.tell(trial, 0.5)
    after = open_study(NAME, storage, tmp_path).trials
    assert after[1].intermediate_values == {1: 5.0, 2: 4.0, 3: 3.0}
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 5
    assert after[2].params.keys() == after[3].params.keys() == {"lr", "depth"}


# ---- databases that can't be used -----------------------------------------------------------------


@pytest.mark.parametrize(
    "url, said",
    [
        (
            "postgresql://me:hunter2@127.0.0.1:1/db",
            r"postgresql://127\.0\.0\.1:1/db can't be used: .*refused",
        ),
        ("postgresql:///db?host=127.0.0.1&port=1&user=me&password=hunter2", "can't be used: .*refused"),
        ("sqlite:////nowhere/at/all/study.db", "study.db can't be used: unable to open"),
        ("sqlite:///{FILE}", "can't be used: file is not a database"),
        ("sqlite://", "can't share a database in memory"),
        ("sqlite:///:memory:", "can't share a database in memory"),
        ("study.db", "isn't a database URL"),
        ("postgresql://me:hunter2@host:hunter2/db", "isn't a database URL"),
        ("postgres://me:hunter2@host/db", r"Unknown database 'postgres'.* Did you mean 'postgresql'\?"),
        (
            "postgresql+psycopg2://me:hunter2@host/db",
            r"driver .*//host/db isn't .*pip install 'psycopg\[binary\]'",
        ),
        ("mysql://me:hunter2@host/db", "driver .* no Python module 'MySQLdb'"),
    ],
)
def test_database_errors_hide_the_password(tmp_path, url, said):
    (tmp_path / "text").write_text("no database " * 1000)
    url = url.replace("{FILE}", str(tmp_path / "text"))
    with pytest.raises(UserError, match=said) as error:
        open_study(NAME, url, tmp_path)
    assert "hunter2" not in str(error.value) and "\n" not in str(error.value)


def test_a_database_of_another_version_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    open_study(NAME, url, tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v1.3.0.a'")
        connection.commit()
    with pytest.raises(UserError, match=r"study\.db was made by another version of Optuna.*storage upgrade"):
        open_study(NAME, url, tmp_path)


def test_lost_database_is_reported(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = open_study(NAME, url, tmp_path)
    (tmp_path / "study.db").write_bytes(b"no database " * 1000)
    with pytest.raises(UserError, match=r"study\.db can't be used: file is not"), storage_errors(url):
        study.ask()


@pytest.mark.parametrize("storage", ["postgresql"], indirect=True)
def test_a_connection_that_was_dropped_is_made_anew(storage, tmp_path):
    study = open_study(NAME, storage, tmp_path)
    trial = study.ask()
    with pytest.importorskip("psycopg").connect(storage, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid != pg_backend_pid()"
        )
    study.tell(trial, 1.0)
    assert states(study) == ["COMPLETE"]


def test_a_password_with_braces_is_none_of_a_templates(tmp_path):
    folder = Path(tmp_path / "{a}")
    folder.mkdir()
    assert open_study(NAME, f"sqlite:///{folder}/study.db", tmp_path).ask().number == 0
    assert (folder / "study.db").exists()


# ---- who leads a study in a database --------------------------------------------------------------


def test_a_study_is_led_from_one_place_at_a_time(tmp_path):
    study = optuna.create_study()
    leader = Leader(study, tmp_path / "here")
    with pytest.raises(UserError, match="Another search leads the study .*here on .*sweep.name="):
        Leader(study, tmp_path / "there")
    Leader(study, tmp_path / "here")  # where a lock has told that nobody is left
    leader.leave()
    Leader(study, tmp_path / "there")


def test_a_leader_that_is_not_heard_of_is_dead(tmp_path, monkeypatch):
    study = optuna.create_study()
    Leader(study, tmp_path / "here")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + Leader.DEAD_SECONDS + 1)
    Leader(study, tmp_path / "there")


class Watching:
    """A monotonic clock that only moves while somebody sleeps, and what happens meanwhile."""

    def __init__(self, monkeypatch, meanwhile=lambda: None):
        self.seconds, self.meanwhile = 0.0, meanwhile
        monkeypatch.setattr(time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.meanwhile()


@pytest.mark.parametrize("off_seconds", [-1e6, -3600, -121, 121, 3600])
def test_remote_leader_is_watched_instead_of_trusting_its_clock(off_seconds, tmp_path, monkeypatch):
    study = optuna.create_study()

    def beat() -> None:
        study.set_user_attr("leader", {"where": "/there on other", "beat": time.time() - off_seconds})

    beat()
    Watching(monkeypatch, meanwhile=beat)
    with pytest.raises(UserError, match="Another search leads the study .*/there on other"):
        Leader(study, tmp_path)
    clock = Watching(monkeypatch)  # it is killed, and its record stays as it is
    Leader(study, tmp_path)
    assert clock.seconds >= 2 * Leader.BEAT_SECONDS
    assert study.user_attrs["leader"]["where"].startswith(str(tmp_path))
