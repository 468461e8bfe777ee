"""A search with its study in a file of its own, in SQLite and in PostgreSQL, whoever runs the trials."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import PASSWORD
from tests.searches import ANY_LR, ENDLESS, Workplace, wait_until
from tests.test_loggers import records

TRIALS = ["hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=3"]


@pytest.mark.slow  # two searches
@pytest.mark.parametrize(
    "launcher, kind",  # our own processes with a journal are killed many times elsewhere
    [("processes", "sqlite"), ("processes", "postgresql"), ("submitit_local", "postgresql")],
)
def test_a_search_that_is_killed_goes_on_and_no_trial_is_lost_or_doubled(tmp_path, request, launcher, kind):
    """And the database's password is known to nobody who reads the folder, or looks on."""
    if launcher == "submitit_local":
        pytest.importorskip("submitit", reason="submitit isn't installed")
    sqlite = f"sqlite:///{tmp_path}/studies.db"
    storage = sqlite if kind == "sqlite" else request.getfixturevalue("new_database")()
    with Workplace(tmp_path, ANY_LR, f"hydra/launcher={launcher}", storage=storage) as place:
        first = place.start(*TRIALS)
        wait_until(lambda: "[1/3]" in first.out, first)
        first.kill()  # it alone: jobs of a cluster know nothing of it
        second = place.start(*TRIALS).well()
        trials = place.trials()
    assert [(one.number, one.state.name) for one in trials] == [(n, "COMPLETE") for n in range(3)]
    assert len({one.user_attrs["run"] for one in trials}) == 3
    assert all(Path(tmp_path, one.user_attrs["run"], "summary.json").exists() for one in trials)
    assert not holding_the_password(tmp_path)
    for search in (first, second):
        assert PASSWORD not in search.out + search.err and "Traceback" not in search.err
        assert "sweep.attempt=" not in search.out + search.err, "launchers leave the terminal to the table"


def holding_the_password(folder: Path) -> list[Path]:
    """Return the files that do: of what a search has written."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 10
    return [file for file in files if PASSWORD.encode() in file.read_bytes()]


@pytest.mark.slow  # a search whose trials would go on for ever
def test_a_database_that_fails_in_the_middle_ends_the_search_with_a_sentence(tmp_path, new_database):
    import psycopg

    url = new_database()
    with Workplace(tmp_path, ANY_LR, *ENDLESS) as place:
        search = place.start(f"sweep.storage='{url}'")
        wait_until(lambda: (place.study_folder / "trial-0/metrics.jsonl").exists(), search)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP TABLE trials CASCADE")
        assert search.ended().returncode == 2
    assert "can't be used" in search.err and "Traceback" not in search.err
    assert PASSWORD not in search.out + search.err and not holding_the_password(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Workplace]:
    """After a search with two trials at once, that logged to W&B without an account."""
    pytest.importorskip("wandb", reason="wandb isn't installed")
    folder = tmp_path_factory.mktemp("finished")
    with Workplace(folder, ANY_LR, "logger=wandb", "logger.mode=offline", HOME=str(folder)) as place:
        place.start("hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=2").well()
        yield place


@pytest.mark.slow  # a search
def test_each_trial_is_a_run_of_wandb_in_the_studys_group(finished):
    assert finished.states() == ["COMPLETE"] * 2
    runs = {}
    for one in finished.trials():
        (file,) = Path(finished.folder, one.user_attrs["run"]).glob("wandb/offline-run-*/run-*.wandb")
        runs[one.number] = next(record.run for record in records(file) if record.HasField("run"))
    assert [run.run_group for run in runs.values()] == ["test", "test"]
    assert len({run.run_id for run in runs.values()}) == 2


@pytest.mark.slow  # a search, and a web server that imports a lot
def test_optuna_dashboard_shows_the_study(finished):
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard isn't installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    words = [program, finished.study_folder / "study.journal", "--host=127.0.0.1", f"--port={port}"]
    dashboard = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def answer(path):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            try:
                with opener.open(f"http://127.0.0.1:{port}/api/{path}", timeout=60) as response:
                    return json.load(response)
            except urllib.error.URLError as error:
                if isinstance(error, urllib.error.HTTPError):
                    raise
                return None  # it hasn't begun yet

        (study,) = wait_until(lambda: answer("studies"), dashboard)["study_summaries"]
        assert study["study_name"] == "test"
        shown = answer(f"studies/{study['study_id']}")["trials"]
    finally:
        dashboard.kill()
        dashboard.wait()
    assert [one["state"] for one in shown] == ["Complete"] * 2
    for one, trial in zip(shown, finished.trials()):
        assert one["values"] == pytest.approx([trial.value])
        assert {param["name"] for param in one["params"]} == set(trial.params)
