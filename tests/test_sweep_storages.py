"""A search with its study in a file of its own, in SQLite and in PostgreSQL, whoever runs the trials."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests import postgres
from tests.small_search import STUDY, begun, end, said, searched, states, trials, until
from tests.test_loggers import records

PASSWORD = "correct-horse"
TRIALS = "hydra.sweeper.n_trials=4"


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("psycopg", reason="psycopg isn't installed")
    with postgres.server() as url:
        yield url.replace("tests@", f"tests:{PASSWORD}@")


@pytest.fixture
def storage(request, kind, tmp_path):
    """Where the study is, with nothing in it."""
    if kind == "journal":
        return None
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    return new_database(request.getfixturevalue("server"), f"db{os.getpid()}_{abs(hash(str(tmp_path)))}")


def new_database(server, name):
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")


@pytest.mark.slow  # two searches
@pytest.mark.parametrize(
    "launcher, kind",  # our own processes with a journal are killed many times elsewhere
    [
        ("processes", "sqlite"),
        ("processes", "postgresql"),
        ("submitit_local", "journal"),
        ("submitit_local", "postgresql"),
    ],
)
def test_a_search_that_is_killed_goes_on_and_no_trial_is_lost_or_doubled(tmp_path, storage, launcher):
    """And the database's password is known to nobody who reads the folder, or looks on."""
    if launcher == "submitit_local":
        pytest.importorskip("submitit", reason="submitit isn't installed")
    words = [f"hydra/launcher={launcher}", "hydra.sweeper.n_jobs=2", TRIALS]
    words += ["sweep.storage='${oc.env:STUDY}'"] if storage else []
    variables = {"STUDY": storage} if storage else {}

    process = begun(tmp_path, *words, **variables)
    try:
        until(lambda: "[1/4]" in said(tmp_path), process)
        process.kill()  # it alone: jobs of a cluster know nothing of it
        searched(tmp_path, *words, **variables)
    finally:
        end(process)
    found = trials(tmp_path, storage)
    assert [(one.number, one.state.name) for one in found] == [(number, "COMPLETE") for number in range(4)]
    assert len({one.user_attrs["run"] for one in found}) == 4
    assert all(Path(tmp_path, one.user_attrs["run"], "summary.json").exists() for one in found)
    assert "Traceback" not in said(tmp_path)
    assert not holding_the_password(tmp_path)


def holding_the_password(folder):
    """Return the files that do: of what a search has written, or said."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 10
    return [file for file in files if PASSWORD.encode() in file.read_bytes()]


@pytest.mark.slow  # a search whose trials would go on for ever
def test_a_database_that_fails_in_the_middle_ends_the_search_with_a_sentence(tmp_path, server):
    import psycopg

    url = new_database(server, f"gone{os.getpid()}")
    process = begun(tmp_path, f"sweep.storage='{url}'", "train.steps=1000000", "train.evals=100000")
    try:
        until(lambda: (tmp_path / STUDY / "trial-0" / "metrics.jsonl").exists(), process)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP TABLE trials CASCADE")
        assert process.wait(60) == 2
    finally:
        end(process)
    assert "can't be used" in said(tmp_path) and "Traceback" not in said(tmp_path)
    assert not holding_the_password(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a search with two trials at once, that logged to W&B without an account."""
    pytest.importorskip("wandb", reason="wandb isn't installed")
    folder = tmp_path_factory.mktemp("finished")
    words = ["logger=wandb", "logger.mode=offline", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=2"]
    searched(folder, *words, HOME=str(folder))
    return folder


@pytest.mark.slow  # a search
def test_each_trial_is_a_run_of_wandb_in_the_studys_group(finished):
    assert states(finished) == ["COMPLETE"] * 2
    runs = {}
    for one in trials(finished):
        (file,) = Path(finished, one.user_attrs["run"]).glob("wandb/offline-run-*/run-*.wandb")
        runs[one.number] = next(record.run for record in records(file) if record.HasField("run"))
    assert [run.run_group for run in runs.values()] == ["small", "small"]
    assert len({run.run_id for run in runs.values()}) == 2


@pytest.mark.slow  # a search, and a web server that imports a lot
def test_optuna_dashboard_shows_the_study(finished):
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard isn't installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (finished / "dashboard.txt").open("w") as output:
        dashboard = subprocess.Popen(
            [Path(sys.executable).with_name("optuna-dashboard"), finished / STUDY / "study.journal"]
            + ["--host=127.0.0.1", f"--port={port}"],
            stdout=output,
            stderr=output,
        )
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

        (study,) = until(lambda: answer("studies"), dashboard)["study_summaries"]
        assert study["study_name"] == "small"
        shown = answer(f"studies/{study['study_id']}")["trials"]
    finally:
        dashboard.send_signal(signal.SIGINT)
        dashboard.wait(60)
    assert [one["state"] for one in shown] == ["Complete"] * 2
    for one, trial in zip(shown, trials(finished)):
        assert one["values"] == pytest.approx([trial.value])
        assert {param["name"] for param in one["params"]} == set(trial.params)
    assert re.search(r"Listening|http", (finished / "dashboard.txt").read_text())
