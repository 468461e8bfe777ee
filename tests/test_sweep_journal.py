"""What a study's file is left as when a write is cut off: by a kill, by a power cut, and by a full disk."""

from __future__ import annotations

import contextlib
import json
import resource

import pytest

from minllm.errors import UserError
from minllm.runs.outcome import Outcome
from minllm.sweep import search
from minllm.sweep.store import JOURNAL, folder_lock, open_study, requeue_interrupted, storage_errors
from tests.instant import Instant, search_at_once

NAME = "size"


def states(study):
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


# ---- the journal's last line ----------------------------------------------------------------------


def test_half_a_line_is_passed_over_and_cut_before_the_next(tmp_path):
    reader, writer = open_study(NAME, None, tmp_path), open_study(NAME, None, tmp_path)
    reader.tell(reader.ask(), 1.0)
    path = tmp_path / JOURNAL
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in (1, 20, len(last) - 1):
        path.write_bytes(whole + last[:cut])
        assert states(reader) == ["COMPLETE"]
        assert states(open_study(NAME, None, tmp_path)) == ["COMPLETE"]
        assert path.read_bytes() == whole
    path.write_bytes(whole + last[:20])
    assert states(reader) == ["COMPLETE"]  # which has seen it, and reads on from there
    assert writer.ask().number == 1
    assert path.read_bytes().startswith(whole + b"{")
    assert states(reader) == ["COMPLETE", "RUNNING"]
    assert reader.ask().number == 2
    assert [json.loads(line) for line in path.read_bytes().splitlines()]


def test_zeros_from_a_power_cut_are_half_a_line(tmp_path):
    study = open_study(NAME, None, tmp_path)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(bytes(5000))
    assert study.ask().number == 0
    assert states(open_study(NAME, None, tmp_path)) == ["RUNNING"]


def test_the_first_line_may_be_the_half_one(tmp_path):
    (tmp_path / JOURNAL).write_bytes(b'{"op_code":0,"wor')
    assert open_study(NAME, None, tmp_path).ask().number == 0


@pytest.mark.parametrize("line", [b"{oops\n", b"\n", b"12\n", b'{"op":1}\n', bytes(30) + b"\n", b"\xff\n"])
def test_a_damaged_line_is_named(tmp_path, line):
    study = open_study(NAME, None, tmp_path)
    study.tell(study.ask(), 1.0)
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], line, *lines[1:]]))
    with pytest.raises(UserError, match=r"study\.journal is damaged: line 2 .*head -n 1"):
        open_study(NAME, None, tmp_path)
    path.write_bytes(b"".join([*lines, line]))  # Optuna wouldn't notice before the next line
    with pytest.raises(UserError, match=f"line {len(lines) + 1} "):
        open_study(NAME, None, tmp_path)


# ---- a full disk ----------------------------------------------------------------------------------


@contextlib.contextmanager
def room(size):
    """Let no file become larger than `size`: the write that goes beyond is cut off there, and the next fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # Python ignores the signal
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("free", [0, 1, 60, 300])
def test_a_full_disk_leaves_no_half_line_and_later_no_second_one(tmp_path, free):
    study, other = open_study(NAME, None, tmp_path), open_study(NAME, None, tmp_path)
    trial = study.ask()
    path = tmp_path / JOURNAL
    before = path.read_bytes()
    with room(len(before) + free), pytest.raises(OSError, match="File too large"):
        trial.set_user_attr("heavy", "x" * 1000)
    assert path.read_bytes() == before
    assert states(other) == ["RUNNING"]
    other.tell(other.ask(), 3.0)
    trial.set_user_attr("heavy", "y" * 1000)
    trial.report(1.0, 1)
    study.tell(trial, 1.0)
    assert states(other) == states(open_study(NAME, None, tmp_path)) == ["COMPLETE", "COMPLETE"]
    assert other.trials[0].user_attrs == {"heavy": "y" * 1000}
    assert path.read_bytes().count(b"heavy") == 1


@pytest.mark.parametrize("free", range(0, 400, 7))
def test_a_disk_that_fills_up_anywhere_in_a_trial_costs_that_trial_at_most(tmp_path, free):
    study = open_study(NAME, None, tmp_path)
    size = (tmp_path / JOURNAL).stat().st_size
    with room(size + free), contextlib.suppress(OSError):
        trial = study.ask()
        trial.suggest_float("lr", 0, 1)
        study.tell(trial, 1.0)
    again = open_study(NAME, None, tmp_path)
    kept = len(again.trials)
    assert requeue_interrupted(again) == list(range(kept))
    assert again.ask().number == 0
    assert len(again.trials) == 1


def test_full_disk_under_a_database_is_reported_and_recoverable(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = open_study(NAME, url, tmp_path)
    trial = study.ask()
    size = (tmp_path / "study.db").stat().st_size
    with room(size), pytest.raises(UserError, match=r"study\.db can't be used: "), storage_errors(url):
        for number in range(100):
            trial.set_user_attr(f"heavy {number}", "x" * 1000)
    study.tell(trial, 1.0)
    assert states(open_study(NAME, url, tmp_path)) == ["COMPLETE"]


# ---- what isn't there any more, or isn't a file ----------------------------------------------------


def test_trials_of_a_lost_journal_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # as on this machine, where a trial that was put back takes its folder again
    monkeypatch.setattr(search, "Processes", Instant)
    monkeypatch.setattr(Instant, "start", lambda self, slots, shared: None, raising=False)
    monkeypatch.setattr(Instant, "close", lambda self, interrupted: None, raising=False)
    grid = "hydra/sweeper/sampler=grid"
    words = ("sweep.name=a-search", "search=none", grid, "seed=choice(0,1)", "hydra.sweeper.n_trials=2")
    folder = tmp_path / "outputs/sweeps/a-search"
    search_at_once(lambda cfg: Outcome("complete", 1.0), *words)
    before = {path: path.read_bytes() for path in folder.glob("trial-*/*")}
    assert len(before) == 2
    (folder / JOURNAL).unlink()
    search_at_once(lambda cfg: Outcome("complete", 2.0), *words)
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in folder.glob("trial-*")) == [
        "trial-0",
        "trial-0.2",
        "trial-1",
        "trial-1.2",
    ]


@pytest.mark.parametrize("name", [".lock", JOURNAL, f"{JOURNAL}.flock"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder, but must be a file"), folder_lock(tmp_path):
        open_study(NAME, None, tmp_path)
