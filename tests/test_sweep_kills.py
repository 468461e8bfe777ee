"""Searches that are stopped, killed and typed again: nothing is lost, nothing is done twice, and nobody is left."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from tests.searches import SMALL, Workplace, ended, one_sentence, soon

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")

GRID = "hydra/sweeper/sampler=grid"


# ---- a search that is typed again -----------------------------------------------------------------

TWINS = ["model/attn=choice(mha,gqa)", "model.attn.n_kv_heads=2", "optim.lr=choice(0.1,0.5)", GRID]
"""Of four combinations, each has another that is the same model."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    place = Workplace(tmp_path_factory.mktemp("searched"))
    done = place.search(*TWINS, "hydra.sweeper.n_trials=4")
    yield SimpleNamespace(place=place, done=done)
    place.end_all()


@pytest.mark.slow  # a search, which the tests of `searched` share
def test_what_computes_the_same_runs_once(searched: SimpleNamespace):
    assert searched.done.returncode == 0, searched.done.stderr
    trials = searched.place.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    first = {trial.params["optim.lr"]: trial for trial in trials[:2]}
    for trial in trials[2:]:
        twin = first[trial.params["optim.lr"]]
        assert trial.user_attrs["same_as"] == twin.number and trial.value == twin.value
        assert trial.params != twin.params and trial.intermediate_values == twin.intermediate_values
    folders = searched.place.folder.glob("outputs/sweeps/test/trial-*")
    assert sorted(folder.name for folder in folders) == ["trial-0", "trial-1"]


@pytest.mark.slow  # another search, and a run
def test_a_study_that_has_its_trials_is_left_as_it_is(searched: SimpleNamespace):
    place = searched.place
    journal = place.folder / "outputs/sweeps/test/study.journal"
    before = journal.read_bytes()
    done = place.search(*TWINS, "hydra.sweeper.n_trials=4")
    assert done.returncode == 0 and "nothing left to try" in done.stdout and "[4/4]" not in done.stdout
    assert journal.read_bytes() == before
    other = place.search("optim.lr=choice(0.1,0.3)", GRID)
    assert other.returncode == 2 and one_sentence(other.stderr) and "sweep.name=<name>" in other.stderr
    assert journal.read_bytes() == before


@pytest.mark.slow  # a run of its own
def test_the_line_that_is_printed_runs_the_best_trial_again_to_the_bit(searched: SimpleNamespace):
    place = searched.place
    line = re.search(r"^To run it again: python run\.py (.*)$", searched.done.stdout, re.MULTILINE)[1]
    done = ended(place.start(*shlex.split(line), "hydra.run.dir=again", script="run.py"))
    assert done.returncode == 0, done.stderr
    best = min(place.trials(), key=lambda trial: trial.value)
    assert json.loads((place.folder / "again/summary.json").read_text())["val_loss"] == best.value


# ---- a search that is stopped, in whichever way ---------------------------------------------------

WAITING = ["optim.fault=choice(none,waits)", "optim.lr=choice(0.1,0.5)", GRID, "hydra.sweeper.n_jobs=2"]
"""Two trials that come to their ends, and two that wait for a file."""


def waits(place: Workplace, search: subprocess.Popen[str]) -> bool:
    """Wait until the trials that wait do; False if the search ends before."""

    def began() -> bool:  # whoever begins a trial has removed what was left of it
        search_server_and_trials = len(place.processes()) >= 4
        logs = place.folder.glob("outputs/sweeps/test/trial-[23]/metrics.jsonl")
        return search_server_and_trials and len(list(logs)) == 2

    return soon(lambda: began() or search.poll() is not None) and search.poll() is None


# six starts of a search, which wait for each other
@pytest.mark.slow
def test_a_search_that_is_stopped_leaves_nobody_and_goes_on(tmp_path: Path):
    place = Workplace(tmp_path)

    def stopped(*, by: int, whom: str = "") -> subprocess.CompletedProcess[str]:
        """Start the search, and send a signal to it, to its server, or to the terminal's whole process group."""
        search = place.start(*SMALL, *WAITING)
        assert waits(place, search), ended(search).stderr
        if whom == "group":
            os.killpg(search.pid, by)
        else:
            (server,) = (
                pid for pid in children(search.pid) if "minllm.sweep.server" in place.processes()[pid]
            )
            os.kill(server if whom == "server" else search.pid, by)
        done = ended(search)
        assert place.nobody_is_left()
        assert done.stderr.count("Traceback") == 0, done.stderr
        return done

    def left() -> list[str]:
        return [trial.state.name for trial in place.trials()]

    assert stopped(by=signal.SIGINT, whom="group").returncode == 130
    assert left() == ["COMPLETE"] * 2 + ["WAITING"] * 2
    params = [trial.params for trial in place.trials()]
    assert stopped(by=signal.SIGTERM).returncode == 143
    assert left() == ["COMPLETE"] * 2 + ["WAITING"] * 2
    assert stopped(by=signal.SIGKILL).returncode == -signal.SIGKILL
    assert left() == ["COMPLETE"] * 2 + ["RUNNING"] * 2, "nobody was there to put them back"
    done = stopped(by=signal.SIGKILL, whom="server")
    assert done.returncode == 2 and one_sentence(done.stderr) and "search goes on" in done.stderr
    assert left() == ["COMPLETE"] * 2 + ["WAITING"] * 2

    search = place.start(*SMALL, *WAITING)
    assert waits(place, search), ended(search).stderr
    second = place.search(*WAITING)
    assert second.returncode == 2 and one_sentence(second.stderr), second.stderr
    assert f"at work in outputs/sweeps/test already: process {search.pid}" in second.stderr
    (tmp_path / "go").touch()
    assert ended(search).returncode == 0
    assert left() == ["COMPLETE"] * 4 and [trial.params for trial in place.trials()] == params
    assert sorted(place.finishes()) == [0, 1, 2, 3]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ---- a search that is killed again and again ------------------------------------------------------

KILLS = 20


# a minute and a half of kills: at a search's start, in its trials and between them
@pytest.mark.slow
def test_a_search_that_is_killed_twenty_times_is_as_if_it_had_not_been(tmp_path: Path):
    place, chance = Workplace(tmp_path), random.Random(0)
    words = ["optim.lr=tag(log,interval(0.05,0.5))", "train.steps=3", "train.evals=3", "sweep/pruner=none"]
    words += ["hydra.sweeper.n_trials=12", "hydra.sweeper.n_jobs=2", "hydra.sweeper.sampler.seed=1"]
    drawn: dict[int, float] = {}
    values: dict[int, float] = {}
    until_trials, killed = 4.0, 0

    for kill in range(KILLS):
        began = time.monotonic()
        search = place.start(*SMALL, *words)
        if kill % 2 == 0:
            time.sleep(chance.uniform(0, until_trials))
        else:  # the search, its server, and a trial; which takes about a second, as does its beginning
            place.wait_for_a_trial(search)
            until_trials = time.monotonic() - began
            time.sleep(chance.uniform(0, 2))
        killed += search.poll() is None
        search.kill()
        ended(search)
        assert place.nobody_is_left(), place.processes()
        for trial in place.trials():
            if trial.params:
                assert drawn.setdefault(trial.number, trial.params["optim.lr"]) == trial.params["optim.lr"]
            if trial.state == TrialState.COMPLETE:
                assert values.setdefault(trial.number, trial.value) == trial.value
    assert killed > KILLS / 2, "the trials are too short for this machine"

    done = place.search(*words)
    assert done.returncode == 0, done.stderr
    trials = place.trials()
    assert [(trial.number, trial.state.name) for trial in trials] == [(n, "COMPLETE") for n in range(12)]
    assert sorted(place.finishes()) == list(range(12)), "each was finished once"
    assert all(trials[number].params["optim.lr"] == lr for number, lr in drawn.items())
    assert all(trials[number].value == value for number, value in values.items())
    assert len({trial.params["optim.lr"] for trial in trials}) == 12, "a seed's draws are not drawn again"
    assert place.nobody_is_left()
