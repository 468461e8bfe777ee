"""Searches that are stopped, killed and typed again: nothing is lost, nothing is done twice, and nobody is left."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from tests.searches import ANY_LR, GRID, Search, Workplace, one_sentence, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    with Workplace(tmp_path) as place:
        yield place


# ---- a search that is typed again -----------------------------------------------------------------

TWINS = ["model/attn=choice(mha,gqa)", "model.attn.n_kv_heads=2", "optim.lr=choice(0.1,0.5)", GRID]
"""Of four combinations, each has another that is the same model."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with Workplace(tmp_path_factory.mktemp("searched")) as place:
        yield SimpleNamespace(place=place, done=place.search(*TWINS, "hydra.sweeper.n_trials=4"))


@pytest.mark.slow  # a search, which the tests of `searched` share
def test_what_computes_the_same_runs_once(searched: SimpleNamespace):
    assert searched.done.returncode == 0, searched.done.err
    trials = searched.place.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    first = {trial.params["optim.lr"]: trial for trial in trials[:2]}
    for trial in trials[2:]:
        twin = first[trial.params["optim.lr"]]
        assert trial.user_attrs["same_as"] == twin.number and trial.value == twin.value
        assert trial.params != twin.params and trial.intermediate_values == twin.intermediate_values
    folders = searched.place.study_folder.glob("trial-*")
    assert sorted(folder.name for folder in folders) == ["trial-0", "trial-1"]


@pytest.mark.slow  # another search, and a run
def test_a_study_that_has_its_trials_is_left_as_it_is(searched: SimpleNamespace):
    place = searched.place
    journal = place.study_folder / "study.journal"
    before = journal.read_bytes()
    done = place.search(*TWINS, "hydra.sweeper.n_trials=4")
    assert (
        done.returncode == 0
        and "All combinations of the grid have been tried" in done.out
        and "[4/4]" not in done.out
    )
    assert journal.read_bytes() == before
    other = place.search("optim.lr=choice(0.1,0.3)", GRID)
    assert other.returncode == 2 and one_sentence(other.err) and "sweep.name=<name>" in other.err
    assert journal.read_bytes() == before


@pytest.mark.slow  # a run of its own
def test_the_line_that_is_printed_runs_the_best_trial_again_to_the_bit(searched: SimpleNamespace):
    place = searched.place
    line = re.search(r"^To run it again: python run\.py (.*)$", searched.done.out, re.MULTILINE)[1]
    place.start_program("run.py", *shlex.split(line), "hydra.run.dir=again").well()
    best = min(place.trials(), key=lambda trial: trial.value)
    assert json.loads((place.folder / "again/summary.json").read_text())["val_loss"] == best.value


# ---- a search that is stopped, in whichever way ---------------------------------------------------

WAITING = ["optim.fault=choice(waits,none)", "optim.lr=choice(0.1,0.5)", GRID, "hydra.sweeper.n_jobs=3"]
"""Two trials that wait for a file, and two that come to their ends meanwhile."""


def wait_for_what_waits(place: Workplace, search: Search) -> None:
    """Wait until two trials wait, and the others have come to their ends."""

    def began() -> bool:  # whoever begins a trial has removed what was left of it
        search_server_and_trials = len(place.processes()) >= 4
        logs = place.study_folder.glob("trial-[01]/metrics.jsonl")
        states = ["RUNNING"] * 2 + ["COMPLETE"] * 2
        return search_server_and_trials and len(list(logs)) == 2 and place.states() == states

    wait_until(began, search)


# four starts of a search, which wait for each other, and one that is refused
@pytest.mark.slow
def test_a_search_that_is_stopped_leaves_nobody_and_goes_on(place: Workplace):
    def stopped(*, by: int, whom: str) -> Search:
        """Start the search, and send a signal to it, to its server, or to the terminal's whole process group."""
        search = place.start(*WAITING)
        wait_for_what_waits(place, search)
        if whom == "group":
            os.killpg(search.pid, by)
        else:
            os.kill(server_of(place, search) if whom == "server" else search.pid, by)
        search.ended()
        assert place.nobody_is_left()
        assert "Traceback" not in search.err
        assert place.states() == ["WAITING"] * 2 + ["COMPLETE"] * 2
        return search

    assert stopped(by=signal.SIGINT, whom="group").returncode == 130
    params = [trial.params for trial in place.trials()]
    assert stopped(by=signal.SIGTERM, whom="search").returncode == 143
    done = stopped(by=signal.SIGKILL, whom="server")
    assert done.returncode == 2 and one_sentence(done.err) and "same command again" in done.err

    search = place.start(*WAITING)
    wait_for_what_waits(place, search)
    second = place.search(*WAITING)
    assert second.returncode == 2 and one_sentence(second.err), second.err
    assert f"already running in outputs/sweeps/test: process {search.pid}" in second.err
    (place.folder / "go").touch()
    search.well()
    assert place.states() == ["COMPLETE"] * 4 and [trial.params for trial in place.trials()] == params
    assert sorted(place.finishes()) == [0, 1, 2, 3]


def server_of(place: Workplace, search: Search) -> int:
    (server,) = (pid for pid in place.processes() if os.getsid(pid) == pid != search.pid)
    return server


# ---- a search that is killed again and again ------------------------------------------------------

KILLS = 6


# half a minute of kills: at a search's start, in its trials and between them
@pytest.mark.slow
def test_a_search_that_is_killed_again_and_again_is_as_if_it_had_not_been(place: Workplace):
    chance = random.Random(0)
    words = [ANY_LR, "train.steps=3", "train.evals=3", "sweep/pruner=none"]
    words += ["hydra.sweeper.n_jobs=2", "hydra.sweeper.sampler.seed=1"]
    drawn: dict[int, float] = {}
    values: dict[int, float] = {}

    for kill in range(KILLS):
        began = time.monotonic()
        search = place.start(*words, "hydra.sweeper.n_trials=100000")  # it won't end before it is killed
        if kill == KILLS - 1:  # one kill comes after trials have ended, however slow the machine is
            wait_until(lambda: "COMPLETE" in place.states(), search)
        elif kill % 3 == 0:
            wait_until(lambda: len(place.processes()) > 2, search)  # it, its server, and a trial
            until_trials = time.monotonic() - began
            time.sleep(chance.uniform(0, 1))
        else:
            time.sleep(chance.uniform(0, until_trials))
        search.kill()
        assert search.ended().returncode == -signal.SIGKILL, search.err
        assert place.nobody_is_left()
        for trial in place.trials():
            if trial.params:
                assert drawn.setdefault(trial.number, trial.params["optim.lr"]) == trial.params["optim.lr"]
            if trial.state == TrialState.COMPLETE:
                assert values.setdefault(trial.number, trial.value) == trial.value
    assert drawn and values

    count = len(place.trials()) + 2
    place.start(*words, f"hydra.sweeper.n_trials={count}").well()
    trials = place.trials()
    assert [(trial.number, trial.state.name) for trial in trials] == [(n, "COMPLETE") for n in range(count)]
    assert sorted(place.finishes()) == list(range(count)), "each was finished once"
    assert all(trials[number].params["optim.lr"] == lr for number, lr in drawn.items())
    assert all(trials[number].value == value for number, value in values.items())
    assert len({trial.params["optim.lr"] for trial in trials}) == count, "a seed's draws are not drawn again"
    assert place.nobody_is_left()
