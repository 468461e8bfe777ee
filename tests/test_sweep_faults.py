"""Trials that fail in every way, each in a process of its own: what the study is told, and what a person is."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import FrozenTrial, TrialState

from minllm.errors import UserError
from minllm.runs import outcome
from minllm.runs.outcome import Outcome
from minllm.sweep import processes, server
from minllm.sweep.ends import outcome_of, without_outcome
from minllm.sweep.processes import NO_ROOM, ProcessDied, ServerDied, TrialOrder
from minllm.sweep.trial import judged
from tests.commands import PATIENCE
from tests.searches import GRID, ROOT, Workplace, one_sentence

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is held to a limit on Linux alone")

ENDS = {  # fault: the study's state of the trial, its reason, and what its text says
    "large_batch": ("COMPLETE", None, ""),
    "leaves_a_process": ("COMPLETE", None, ""),
    "slow": ("PRUNED", "pruner", "was worse than that of other trials"),
    "large_row": ("PRUNED", "memory", "with a single row at a time"),
    "allocates": ("PRUNED", "memory", "can't allocate memory"),
    "chained": ("PRUNED", "memory", "an idea that didn't work out"),
    "bad_alloc": ("PRUNED", "memory", "in code that can't report it"),
    "not_a_number": ("PRUNED", "diverged", "The loss is nan at step 2"),
    "diverges": ("PRUNED", "diverged", "above its initial 5."),
    "kills_itself": ("FAIL", "crash", "ended with SIGKILL. See "),
    "segfaults": ("FAIL", "crash", "ended with SIGSEGV. See "),
    "bug": ("FAIL", "crash", "ValueError: a bug of step 2"),
    "exits": ("FAIL", "crash", "SystemExit: 3"),
    "vanishes": ("FAIL", "crash", "recorded no outcome. See "),
    "scribbles": ("FAIL", "crash", "recorded no outcome. See "),
    "removes_its_folder": ("PRUNED", "pruner", "was worse"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A search in which each fault has one trial, after it has ended."""
    with Workplace(tmp_path_factory.mktemp("faulty")) as place:
        done = place.search(
            f"optim.fault=choice({','.join(ENDS)})",
            GRID,
            "memory.limit=1000MiB",  # of which a forked process has 400 from the start
            "train.check=true",  # memory runs out there too
            "train.steps=5",
            "train.evals=5",
            "sweep.max_failures=50",
            "sweep.pruner.n_startup_trials=2",
            "sweep.pruner.n_warmup_evals=2",
        )
        yield SimpleNamespace(place=place, done=done, trials=place.by_fault())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    with Workplace(tmp_path) as place:
        yield place


def output_of(place: Workplace, trial: FrozenTrial) -> str:
    return (place.folder / trial.user_attrs["run"] / "output.txt").read_text(errors="replace")


# a search with sixteen trials, which all tests of `faulty` share
@linux
@pytest.mark.slow
@pytest.mark.parametrize("fault", ENDS)
def test_what_becomes_of_a_trial(faulty: SimpleNamespace, fault: str):
    assert faulty.done.returncode == 0, faulty.done.err
    trial, (state, reason, text) = faulty.trials[fault], ENDS[fault]
    assert (trial.state.name, trial.user_attrs.get("reason")) == (state, reason)
    assert text in trial.user_attrs.get("text", "")
    if "See " in text:
        assert (faulty.place.folder / trial.user_attrs["text"].split("See ")[1].rstrip(".")).is_file()


@linux
@pytest.mark.slow  # shares that search
def test_fewer_rows_at_a_time_where_all_do_not_fit(faulty: SimpleNamespace):
    known = faulty.trials["large_batch"].user_attrs
    assert known["micro_batch_size_asked"] == 4 and known["micro_batch_size"] == 2
    assert "train.batch_size=4" in known["overrides"] and "train.micro_batch_size=2" in known["overrides"]
    assert "Memory ran out with 4 rows at a time" in output_of(faulty.place, faulty.trials["large_batch"])
    same = faulty.trials["leaves_a_process"]
    assert faulty.trials["large_batch"].value == pytest.approx(same.value, rel=1e-5), "it's the same batch"


@linux
@pytest.mark.slow  # shares that search
def test_what_a_trial_printed_is_in_its_folder_and_not_on_the_terminal(faulty: SimpleNamespace):
    for fault, said in (("bug", "ValueError: a bug"), ("exits", "SystemExit: 3"), ("bad_alloc", "bad_alloc")):
        assert said in output_of(faulty.place, faulty.trials[fault])
        assert said not in faulty.done.err
    assert "Traceback" in output_of(faulty.place, faulty.trials["bug"])
    assert faulty.done.out.count("\n[") + 1 >= len(ENDS) and "Error executing job" not in faulty.done.err


@linux
@pytest.mark.slow  # shares that search
def test_what_a_trial_has_started_ends_with_it(faulty: SimpleNamespace):
    assert faulty.place.nobody_is_left()


@pytest.mark.slow  # a search whose trials hang for seconds
def test_trials_that_hang_are_ended_whatever_they_do_against_it(place: Workplace):
    """Those that don't are tested where nobody looks at the clock: on a busy machine they would be late too."""
    done = place.search(
        "optim.fault=choice(hangs,ignores,stops)", GRID, "hydra.sweeper.n_jobs=3", "sweep.trial_minutes=0.05"
    )
    assert done.returncode == 0, done.err
    trials = place.trials()
    assert [(trial.state.name, trial.user_attrs["reason"]) for trial in trials] == [("PRUNED", "time")] * 3
    assert max(trial.datetime_start for trial in trials) < min(trial.datetime_complete for trial in trials)
    assert place.nobody_is_left()


@pytest.mark.slow  # a search of its own
def test_a_search_stops_when_trials_crash_one_after_the_other(place: Workplace):
    done = place.search("optim.fault=bug", "optim.at=choice(2,3,4)", GRID, "sweep.max_failures=2")
    assert done.returncode == 1
    assert place.states() == ["FAIL", "FAIL"]
    assert "2 trials in a row" in done.err and "The first was trial 0" in done.err
    assert "ValueError: a bug of step 2" in done.err and "a bug of step 3" not in done.err
    assert done.err.count("Traceback") == 1 and place.nobody_is_left()


# ---- a full disk ----------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("making a small disk takes the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@linux
@pytest.mark.slow  # three searches
def test_a_full_disk_costs_a_sentence_and_no_trial(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, "8m"), Workplace(disk) as place:
        filler = disk / "filler"
        words = ["optim.at=choice(1,2,3,4,5,6)", GRID, "sweep.keep_checkpoints=all"]
        for room in (60 << 10, 600 << 10):  # too little for the tokens of the corpus, and for six checkpoints
            filler.unlink(missing_ok=True)
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - room))
            done = place.search(*words)
            assert done.returncode == 2 and one_sentence(done.err), done.err
            assert "Free some space" in done.err and place.nobody_is_left()
            before = place.trials()
            assert len(before) < 6 and all(trial.state == TrialState.COMPLETE for trial in before[:-1])
            assert all(trial.state in (TrialState.WAITING, TrialState.RUNNING) for trial in before[-1:])
        assert before
        filler.unlink()
        done = place.search(*words)
        assert done.returncode == 0, done.err
        trials = place.trials()
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
        assert [trial.params for trial in trials[: len(before) - 1]] == [
            trial.params for trial in before[:-1]
        ]
        assert sorted(place.finishes()) == list(range(6))


LAST_WORD = """
import resource, sys
from minllm.sweep import server

def perform(*_):
    sys.stdout = sys.stderr = open("out", "w")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    sys.stdout.write("never to be read")
    raise OSError(28, "No space left on device")

server.run_trial({"folder": ".", "number": 0, "storage": None}, server.Imported(perform, lambda: 0, []), ())
"""


@linux
def test_a_disk_without_room_for_a_last_word_is_still_said_to_be_full(tmp_path: Path):
    """Of a trial's process that has printed more than there's room for, so that flushing fails too."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", LAST_WORD], cwd=tmp_path, env=environment)
    assert child.returncode == NO_ROOM


# ---- what a process's end means -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "timed_out", "kills", "state", "reason"),
    [
        (-signal.SIGKILL, False, 4, "pruned", "killed"),
        (-signal.SIGKILL, False, 3, "failed", "crash"),
        (-signal.SIGKILL, True, 4, "pruned", "time"),
        (-signal.SIGSEGV, False, 4, "failed", "crash"),
        (1, False, 4, "failed", "crash"),
    ],
)
def test_a_kill_is_for_memory_if_the_kernel_has_counted_one(
    tmp_path: Path, status: int, timed_out: bool, kills: int, state: str, reason: str
):
    child = server.Child(id=7, pid=1, kills_before=3, deadline=0.0, timed_out=timed_out)
    answer = server.answer(child, status, kills)
    assert answer.pop("id") == 7
    end = outcome_of(ProcessDied(**answer), tmp_path)
    assert (end.state, end.reason) == (state, reason)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (ImportError("libx.so: failed to map segment from shared object: Cannot allocate memory"), "memory"),
        (SystemError("error return without exception set"), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (ImportError("No module named 'x'"), "crash"),
        (SystemError("bad argument to internal function"), "crash"),
        (OSError(errno.EMFILE, "Too many open files"), "crash"),
    ],
    ids=repr,
)
def test_memory_runs_out_in_many_words(error: Exception, reason: str):
    assert judged(error).reason == reason


def test_what_is_not_a_trials_fault_ends_the_search(tmp_path: Path):
    for error, expected in ((ProcessDied(NO_ROOM), "disk is full"), (ServerDied(), "same command again")):
        future: Future = Future()
        future.set_exception(error)
        with pytest.raises(UserError, match=expected):
            without_outcome(future, tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"attempt": "a"}', '{"attempt": "a", "x": 1}']
)
def test_a_damaged_outcome_is_none(tmp_path: Path, text: str):
    (tmp_path / outcome.FILE).write_text(text)
    assert outcome.read(tmp_path, "a") is None


def test_an_outcome_is_its_attempts_alone(tmp_path: Path):
    outcome.write(Outcome("complete", 1.5), tmp_path, "a")
    assert outcome.read(tmp_path, "a") == Outcome("complete", 1.5)
    assert outcome.read(tmp_path, "b") is None and outcome.read(tmp_path / "none", "a") is None


# ---- the process that trials are forked from ------------------------------------------------------


def test_a_server_that_is_killed_keeps_nobody_waiting(tmp_path: Path):
    started = processes.ForkServer(slots=2)
    with ThreadPoolExecutor(2) as pool:
        before = [pool.submit(started.run, TrialOrder(str(tmp_path), number)) for number in range(2)]
        started.process.kill()
        for future in before:
            assert isinstance(future.exception(PATIENCE), ServerDied)
        assert isinstance(
            pool.submit(started.run, TrialOrder(str(tmp_path), 2)).exception(PATIENCE), ServerDied
        )
    started.close()


def test_a_server_that_somebody_has_stopped_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.2)
    started = processes.ForkServer(slots=1)
    started.process.send_signal(signal.SIGSTOP)
    started.close()
    assert started.process.returncode < 0
