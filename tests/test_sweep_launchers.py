"""A search whose trials are jobs: of submitit on this machine, of a Slurm that is pretended, and of Ray."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from minllm.sweep import limits, processes, server, trial
from minllm.sweep.ends import outcome_of_job
from minllm.sweep.launchers import fresh
from minllm.sweep.outcome import OUTPUT
from tests.small_search import (
    ENDLESS,
    PATIENCE,
    STUDY,
    begun,
    end,
    reported,
    said,
    searched,
    states,
    trials,
    until,
)

SUBMITIT = ["hydra/launcher=submitit_local", "hydra.sweeper.n_jobs=2"]


def needs(package: str) -> None:
    pytest.importorskip(package, reason=f"{package} isn't installed")


def jobs(folder: Path) -> list[int]:
    """The processes of submitit that train."""
    found = []
    for controller in (folder / STUDY / ".submitit").glob("[0-9]*"):
        children = Path(f"/proc/{controller.name}/task/{controller.name}/children")
        found += [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return found


# ---- what can't be --------------------------------------------------------------------------------


@pytest.mark.slow  # two starts of a search
def test_what_cant_be_is_refused_in_a_sentence_before_anything_is_written(tmp_path):
    needs("submitit")
    for words, sentence in (
        (["hydra/launcher=basic"], "choose hydra/launcher=processes"),
        ([*SUBMITIT, "sweep.storage='postgresql+psycopg://me:hunter2@host/db'"], "put it into ~/.pgpass"),
    ):
        process = begun(tmp_path, *words)
        assert process.wait(PATIENCE) == 2
        assert sentence in said(tmp_path) and "Traceback" not in said(tmp_path)
    assert "hunter2" not in said(tmp_path) and not (tmp_path / STUDY).exists()


# ---- submitit -------------------------------------------------------------------------------------


@pytest.mark.slow  # a search, and processes that import everything anew
def test_jobs_of_submitit_are_trials_two_at_once(tmp_path):
    needs("submitit")
    output = searched(tmp_path, *SUBMITIT, "hydra.sweeper.n_trials=3")
    assert states(tmp_path) == ["COMPLETE"] * 3
    assert all(Path(tmp_path, one.user_attrs["run"], "summary.json").exists() for one in trials(tmp_path))
    assert trials(tmp_path)[1].datetime_start < trials(tmp_path)[0].datetime_complete
    assert "HYDRA" not in output and "Trial" in output


@pytest.mark.slow  # a search whose trials would go on for ever
@pytest.mark.skipif(sys.platform != "linux", reason="a job's process is found under /proc")
def test_a_job_that_is_killed_and_one_whose_time_is_up(tmp_path):
    needs("submitit")
    words = [*SUBMITIT, *ENDLESS, "hydra.sweeper.n_trials=2", "hydra.launcher.timeout_min=10"]
    process = begun(tmp_path, *words)
    try:
        until(lambda: len(jobs(tmp_path)) == 2 and reported(tmp_path), process)
        killed, late = jobs(tmp_path)
        os.kill(killed, signal.SIGKILL)
        os.kill(late, signal.SIGUSR2)  # by which submitit says that the time is almost up
        assert process.wait(PATIENCE) == 0, said(tmp_path)
    finally:
        end(process)
    by_reason = {one.user_attrs["reason"]: one for one in trials(tmp_path)}
    assert by_reason["crash"].state == TrialState.FAIL and by_reason["time"].state == TrialState.PRUNED
    assert "hydra.launcher.timeout_min" in by_reason["time"].user_attrs["text"]
    log = Path(tmp_path, by_reason["crash"].user_attrs["text"].rpartition("See ")[2].rstrip("."))
    assert "has not produced any output" in log.read_text()


@pytest.mark.slow  # a search whose trial begins twice
@pytest.mark.skipif(sys.platform != "linux", reason="a job's process is found under /proc")
def test_a_job_that_makes_room_for_others_begins_again(tmp_path):
    needs("submitit")
    words = ["hydra/launcher=submitit_local", *ENDLESS, "hydra.sweeper.n_trials=1", "sweep.trial_minutes=0.3"]
    process = begun(tmp_path, *words)
    try:
        until(lambda: jobs(tmp_path) and reported(tmp_path), process)
        os.kill(jobs(tmp_path)[0], signal.SIGUSR2)  # long before its time is up
        assert process.wait(PATIENCE) == 0, said(tmp_path)
    finally:
        end(process)
    assert trials(tmp_path)[0].user_attrs["text"] == "It took longer than sweep.trial_minutes."
    (log,) = (tmp_path / STUDY / ".submitit").rglob("*_log.out")
    assert log.read_text().count("Starting with") > 1


@pytest.mark.slow  # two searches, one of which is interrupted
@pytest.mark.skipif(sys.platform != "linux", reason="a job's process is found under /proc")
def test_jobs_that_go_on_after_ctrl_c_stop_by_themselves_and_do_no_harm(tmp_path):
    needs("submitit")
    words = [*SUBMITIT, *ENDLESS, "hydra.sweeper.n_trials=2"]
    process = begun(tmp_path, *words)
    try:
        until(lambda: len(jobs(tmp_path)) == 2 and reported(tmp_path), process)
        given_up = jobs(tmp_path)
        for job in given_up:  # so that they go on when the next search is at work already
            os.kill(job, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert states(tmp_path) == ["WAITING"] * 2 and "Traceback" not in said(tmp_path)
        attempts = {one.user_attrs["attempt"] for one in trials(tmp_path)}

        again = begun(tmp_path, *words, "sweep.trial_minutes=0.2")
        try:
            until(lambda: not attempts & {one.user_attrs["attempt"] for one in trials(tmp_path)}, again)
            for job in given_up:
                os.kill(job, signal.SIGCONT)
            until(lambda: not any(Path(f"/proc/{job}").exists() for job in given_up))
            assert again.wait(PATIENCE) == 0, said(tmp_path)
        finally:
            end(again)
    finally:
        end(process)
    assert [one.user_attrs["text"] for one in trials(tmp_path)] == [
        "It took longer than sweep.trial_minutes."
    ] * 2
    for one in trials(tmp_path):
        old, new = tmp_path / STUDY / f"trial-{one.number}", Path(tmp_path, one.user_attrs["run"])
        assert "has given this attempt at the trial up" in (old / OUTPUT).read_text()
        assert not (old / "trial.json").exists() and new != old
        steps = [json.loads(line)["step"] for line in (new / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps)


@pytest.mark.slow  # a search, and processes that import everything anew
def test_ctrl_c_on_the_terminal_reaches_the_jobs_too_and_is_no_verdict(tmp_path):
    needs("submitit")
    process = begun(tmp_path, *SUBMITIT, *ENDLESS, "hydra.sweeper.n_trials=2")
    try:
        until(lambda: reported(tmp_path), process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        end(process)
    assert set(states(tmp_path)) == {"WAITING"}


def test_a_job_that_waited_until_its_trial_was_anothers_does_nothing(tmp_path):
    of_another = trial.Assignment(
        number=0,
        trial_id=0,
        attempt="second",
        run_dir=str(tmp_path / "trial-0"),
        config={},
        study="small",
        pruner={},
        metric="val_loss",
        limit_bytes=None,
        predict=False,
        minutes=None,
        threads=None,
    )
    of_another.write(tmp_path)
    trial.perform(tmp_path, 0, None, "first")
    assert not (tmp_path / "trial-0").exists()


def test_an_attempt_of_its_own_has_a_folder_of_its_own(tmp_path):
    for name in ("trial-7", "trial-7.2", "trial-7.3"):
        assert fresh(tmp_path / "trial-7") == tmp_path / name
        (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    ("said_by_the_launcher", "state", "reason"),
    [
        ("Job 7 has not produced any output (state: TIMEOUT)", "pruned", "time"),
        ("UncompletedJobError: Job not requeued because: timed-out too many times.", "pruned", "time"),
        ("Job 7 has not produced any output (state: OUT_OF_MEMORY)", "pruned", "killed"),
        ("Job 7 has not produced any output (state: NODE_FAIL)", "failed", "crash"),
        ("sbatch: error: invalid partition specified: gpu", "failed", "crash"),
    ],
)
def test_what_a_cluster_says_of_a_job_is_understood_and_kept(tmp_path, said_by_the_launcher, state, reason):
    outcome = outcome_of_job(RuntimeError(said_by_the_launcher), tmp_path / "trial-0")
    assert (outcome.state, outcome.reason) == (state, reason)
    assert said_by_the_launcher in (tmp_path / "trial-0" / OUTPUT).read_text()


# ---- Slurm, or something that answers as it does ---------------------------------------------------

SBATCH = """#!/bin/bash
# begins a batch at once, in a session of its own
script="${@: -1}"
cp "$script" "$PRETENDED/batch-$$"
SLURM_JOB_ID=$$ setsid bash "$script" >"$PRETENDED/log-$$" 2>&1 </dev/null &
echo "Submitted batch job $$"
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do
  case "$1" in --output|--error) shift 2 ;; *) shift ;; esac
done
exec "$@"
"""


@pytest.mark.slow  # a search, and a process that imports everything anew
@pytest.mark.skipif(not shutil.which("setsid"), reason="there's no setsid, which the pretended sbatch needs")
def test_a_job_of_slurm_needs_nothing_but_what_was_pickled(tmp_path):
    needs("submitit")
    programs = tmp_path / "bin"
    programs.mkdir()
    no_news = "#!/bin/bash\necho 'JobID|State|NodeList'\n"
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", no_news)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    searched(
        tmp_path,
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=1",
        "hydra.sweeper.n_trials=1",
        PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
        PRETENDED=str(tmp_path),
    )
    assert states(tmp_path) == ["COMPLETE"]
    batch = next(tmp_path.glob("batch-*")).read_text()
    assert "--partition=gpu" in batch and "--gpus-per-node=1" in batch and "--job-name=small" in batch


# ---- Ray ------------------------------------------------------------------------------------------


@pytest.mark.slow  # Ray starts a cluster of its own
def test_trials_are_tasks_of_ray_two_at_once(tmp_path):
    needs("ray")
    needs("hydra_plugins.hydra_ray_launcher")
    words = ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "hydra.sweeper.n_jobs=2"]
    searched(tmp_path, *words, "hydra.sweeper.n_trials=4")
    assert states(tmp_path) == ["COMPLETE"] * 4


# ---- GPUs -----------------------------------------------------------------------------------------


def test_trials_that_run_at_once_have_gpus_of_their_own(monkeypatch):
    """By the slots of their orders, as the process that forks them has it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    monkeypatch.setattr(limits.machine, "choose_device", lambda name: SimpleNamespace(type="cuda"))
    gpus, seen = limits.gpus(), {}
    assert gpus == ["3", "GPU-5a"]
    for slot in range(3):
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)

            def perform(folder, number, storage, theirs=theirs):
                os.write(theirs, os.environ["CUDA_VISIBLE_DEVICES"].encode())

            imported = server.Imported(perform, lambda: 0, gpus)
            order = {"folder": ".", "number": slot, "storage": None, "slot": slot}
            server.run_trial(order, imported, close=())
        os.close(theirs)
        with os.fdopen(ours) as answer:
            seen[slot] = answer.read()
        os.waitpid(pid, 0)
    assert seen == {0: "3", 1: "GPU-5a", 2: "3"}


class Pretended:
    """The process that trials are forked from, as the search sees it: it only ends the trials that it's told to."""

    def __init__(self, *args, **options):
        self.orders, self.ends = [], queue.SimpleQueue()
        self.stdin, self.stdout = self, iter(lambda: json.dumps(self.ends.get()), None)

    def write(self, line):
        self.orders.append(json.loads(line))

    def flush(self):
        pass


def test_a_slot_is_given_back_when_its_trial_has_ended(monkeypatch):
    monkeypatch.setattr(processes.subprocess, "Popen", Pretended)
    search = processes.ForkServer(Path(), None, None, slots=2)
    orders, ends = search.process.orders, search.process.ends
    for number in range(3):
        threading.Thread(target=search.run, args=(number,), daemon=True).start()
    until(lambda: len(orders) == 2)
    first, second = orders
    assert {first["slot"], second["slot"]} == {0, 1}
    ends.put({"number": second["number"], "status": 0})
    until(lambda: len(orders) == 3)
    assert orders[2]["slot"] == second["slot"]
