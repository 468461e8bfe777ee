"""A search whose trials are jobs: of submitit on this machine, of a Slurm that is pretended, and of Ray."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from minllm.runs.outcome import OUTPUT
from minllm.sweep import processes, trial
from minllm.sweep.ends import outcome_of_job
from minllm.sweep.launchers import fresh
from tests.commands import python
from tests.searches import ANY_LR, ENDLESS, Workplace, wait_until

SUBMITIT = "hydra/launcher=submitit_local"
TWO_JOBS = [SUBMITIT, "hydra.sweeper.n_jobs=2"]


def needs(package: str) -> None:
    pytest.importorskip(package, reason=f"{package} isn't installed")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    with Workplace(tmp_path, ANY_LR) as place:
        yield place


def jobs(place: Workplace) -> list[int]:
    """The processes of submitit that train."""
    found = []
    for controller in (place.study_folder / ".submitit").glob("[0-9]*"):
        children = Path(f"/proc/{controller.name}/task/{controller.name}/children")
        found += (
            [int(pid) for pid in children.read_text(encoding="utf-8").split()] if children.exists() else []
        )
    return found


# ---- submitit -------------------------------------------------------------------------------------


@pytest.mark.slow  # a search whose trials would go on for ever
@pytest.mark.skipif(sys.platform != "linux", reason="a job's process is found under /proc")
def test_a_job_that_is_killed_and_one_whose_time_is_up(place):
    needs("submitit")
    search = place.start(*TWO_JOBS, *ENDLESS, "hydra.sweeper.n_trials=2", "hydra.launcher.timeout_min=10")
    wait_until(lambda: len(jobs(place)) == 2 and place.all_were_evaluated(), search)
    killed, late = jobs(place)
    os.kill(killed, signal.SIGKILL)
    os.kill(late, signal.SIGUSR2)  # by which submitit says that the time is almost up
    search.well()
    by_reason = {one.user_attrs["reason"]: one for one in place.trials()}
    assert by_reason["crash"].state == TrialState.FAIL and by_reason["time"].state == TrialState.PRUNED
    assert "hydra.launcher.timeout_min" in by_reason["time"].user_attrs["text"]
    log = Path(place.folder, by_reason["crash"].user_attrs["text"].rpartition("See ")[2].rstrip("."))
    assert "has not produced any output" in log.read_text(encoding="utf-8")


@pytest.mark.slow  # a search whose trial begins twice
def test_a_job_that_makes_room_for_others_begins_again(place):
    needs("submitit")
    words = ["optim.fault=makes_room", "optim.at=3", "sweep.trial_minutes=60"]
    place.start(SUBMITIT, *words, "hydra.sweeper.n_trials=1").well()
    (one,) = place.trials()
    assert one.user_attrs["text"] == "It took longer than sweep.trial_minutes."
    assert list(one.intermediate_values) == [1, 2]  # until it was to make room
    (log,) = (place.study_folder / ".submitit").rglob("*_log.out")
    assert log.read_text().count("Starting with") == 2


@pytest.mark.slow  # two searches, one of which is interrupted
@pytest.mark.skipif(sys.platform != "linux", reason="a job's process is found under /proc")
def test_a_job_that_goes_on_after_ctrl_c_stops_by_itself_and_does_no_harm(place):
    needs("submitit")
    words = [SUBMITIT, *ENDLESS, "hydra.sweeper.n_trials=1"]
    search = place.start(*words)
    wait_until(lambda: jobs(place) and place.all_were_evaluated(), search)
    (given_up,) = jobs(place)
    os.kill(given_up, signal.SIGSTOP)  # so that it goes on when the next search is at work already
    search.send_signal(signal.SIGINT)
    assert search.ended().returncode == 130
    assert place.states() == ["WAITING"] and "Traceback" not in search.err
    (attempt,) = (one.user_attrs["attempt"] for one in place.trials())

    again = place.start(*words)
    wait_until(lambda: [one.user_attrs["attempt"] for one in place.trials()] != [attempt], again)
    os.kill(given_up, signal.SIGCONT)
    wait_until(lambda: not Path(f"/proc/{given_up}").exists())
    (one,) = place.trials()
    old, new = place.study_folder / "trial-0", Path(place.folder, one.user_attrs["run"])
    wait_until((new / "metrics.jsonl").exists, again)
    again.send_signal(signal.SIGINT)
    assert again.ended().returncode == 130
    assert "has abandoned this attempt at the trial" in (old / OUTPUT).read_text()
    assert not (old / "trial.json").exists() and new != old
    steps = [json.loads(line)["step"] for line in (new / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.slow  # a search, and a process that imports everything anew
def test_ctrl_c_on_the_terminal_reaches_the_jobs_too_and_is_no_verdict(place):
    needs("submitit")
    search = place.start(SUBMITIT, *ENDLESS, "hydra.sweeper.n_trials=1")
    wait_until(place.all_were_evaluated, search)
    os.killpg(search.pid, signal.SIGINT)
    assert search.ended().returncode == 130
    assert place.states() == ["WAITING"]


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
    place = Workplace(
        tmp_path / "place",
        ANY_LR,
        PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
        PRETENDED=str(tmp_path),
    )
    with place:
        of_slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]
        of_slurm += ["hydra.launcher.gpus_per_node=1"]
        place.start(*of_slurm, "hydra.sweeper.n_trials=1").well()
        assert place.states() == ["COMPLETE"]
    batch = next(tmp_path.glob("batch-*")).read_text()
    assert "--partition=gpu" in batch and "--gpus-per-node=1" in batch and "--job-name=test" in batch


# ---- Ray ------------------------------------------------------------------------------------------


@pytest.mark.slow  # Ray starts a cluster of its own
def test_trials_are_tasks_of_ray_two_at_once(place):
    needs("ray")
    needs("hydra_plugins.hydra_ray_launcher")
    words = ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "hydra.sweeper.n_jobs=2"]
    place.start(*words, "hydra.sweeper.n_trials=4").well()
    assert place.states() == ["COMPLETE"] * 4


# ---- GPUs -----------------------------------------------------------------------------------------

SLOTS = """
import os, sys

from minllm.sweep import limits, server

limits.torch.cuda.is_available = lambda: True

def perform(*_):
    os.write(1, os.environ["CUDA_VISIBLE_DEVICES"].encode())

imported = server.Imported(perform, lambda: 0, limits.gpus())
for slot in range(3):
    order = {"folder": ".", "number": slot, "id": slot, "storage": None, "minutes": None, "slot": slot}
    child = server.start(order, imported, close=())
    os.waitpid(child.pid, 0)
    os.write(1, b" ")
"""


def test_trials_that_run_at_once_have_gpus_of_their_own(tmp_path):
    """By the slots of their orders, as the process that forks them has it."""
    script = tmp_path / "slots.py"
    script.write_text(SLOTS)
    server = python(str(script), cwd=tmp_path, CUDA_VISIBLE_DEVICES="3,GPU-5a")
    assert server.returncode == 0, server.stderr
    assert server.stdout.split() == ["3", "GPU-5a", "3"]


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
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=Pretended, PIPE=subprocess.PIPE))
    search = processes.ForkServer(slots=2)
    orders, ends = search.process.orders, search.process.ends
    for number in range(3):
        threading.Thread(target=search.run, args=(processes.TrialOrder(".", number),), daemon=True).start()
    wait_until(lambda: len(orders) == 2)
    first, second = orders
    assert {first["slot"], second["slot"]} == {0, 1}
    ends.put({"id": second["id"], "status": 0})
    wait_until(lambda: len(orders) == 3)
    assert orders[2]["slot"] == second["slot"]
