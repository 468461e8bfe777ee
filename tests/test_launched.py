"""Processes that a launcher starts: each learns its place, and what several can't do is refused before they begin."""

import os
import re
import shlex
import sys

import pytest
import torch.distributed.run

import minllm
from minllm.errors import UserError
from minllm.sweep import server
from minllm.sweep.store import open_study
from minllm.training import launched
from minllm.training.launched import Place, place
from tests.commands import ROOT, python
from tests.processes import environment
from tests.searches import ANY_LR, GRID, Workplace


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, Place()),
        # a batch script has the number of tasks, but isn't one of them
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, Place()),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
            | {
                "MASTER_PORT": "29500",
                "TORCHELASTIC_RESTART_COUNT": "2",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            },
            Place(5, 8, 1, 4, "a", 29500, 2, True),
        ),
        (
            {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "16", "SLURM_JOB_ID": "7"}
            | {
                "SLURM_STEP_ID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
                "SLURM_STEP_NODELIST": "gpu[07-08]",
            }
            | {"SLURM_RESTART_COUNT": "1"},
            Place(9, 16, 1, 8, "gpu07", launched.port_of("7/0"), 1),
        ),
        (
            {"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1"}
            | {"SUBMITIT_LOCAL_JOB_ID": "123"},
            Place(1, 2, 1, 2, "localhost", launched.port_of("123")),
        ),
    ],
)
def test_a_process_learns_its_place_from_its_launcher(variables, expected):
    assert place(variables) == expected


def test_a_variable_that_is_no_number_is_refused():
    variables = {"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    with pytest.raises(UserError, match="WORLD_SIZE must be a whole number.*not 'two'"):
        place(variables)
    with pytest.raises(UserError, match="SLURM_LOCALID must be a whole number"):
        place({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"})


@pytest.mark.parametrize(
    "nodes, first",
    [("a", "a"), ("a,b", "a"), ("n[03,07-09]", "n03"), ("n[1-2]-ib,b", "n1-ib"), ("x-1,x-2", "x-1")],
)
def test_processes_meet_at_the_first_host_of_a_job(nodes, first):
    assert launched.first_host(nodes) == first


def test_torchrun_prints_a_mistake_once(tmp_path):
    pair = ["--standalone", "--nproc-per-node=2", str(ROOT / "run.py")]
    words = [*pair, "train.device=cpu", "train.batch_size=7"]
    done = python(torch.distributed.run.__file__, *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.stderr.count("train.batch_size=7 can't be shared equally by 2 processes") == 1, done.stderr
    assert "exitcode  : 2" in done.stderr and not list(tmp_path.glob("outputs/*/*"))


def test_commands_that_do_not_train_refuse_several_processes(tmp_path):
    done = python(
        "run.py",
        "task=trace",
        cwd=tmp_path,
        **{**environment(0, 2, 1, 0), "TORCHELASTIC_USE_AGENT_STORE": "False"},
    )
    assert done.returncode == 2
    assert "task=trace runs in a single process, but 2 were started: start it without torchrun" in done.stderr


@pytest.mark.parametrize("words", [["run.py", "-m", "seed=0,1"], ["sweep.py", "search=size"]])
def test_grids_and_searches_refuse_several_processes_before_they_begin(words, tmp_path):
    variables = {**environment(0, 2, 1, 0), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    done = python(*words, cwd=tmp_path, **variables)
    assert done.returncode == 2 and "runs in a single process, but 2 were started" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["run.py", "train.steps=1"], ["sweep.py", "search=size"]])
def test_a_job_without_slurm_is_refused(words, tmp_path):
    pytest.importorskip("submitit", reason="submitit isn't installed")
    few = ["data.train_stories=40", "data.val_stories=2"]
    launcher = "hydra/launcher=submitit_slurm"
    done = python(*words, launcher, *few, cwd=tmp_path, PATH=os.path.dirname(sys.executable))
    assert done.returncode == 2 and "finds no srun on this machine" in done.stderr


def test_a_trial_may_be_trained_by_two_processes(tmp_path):
    rates = ["optim=sgd", "optim.lr=choice(0.1,0.3)", GRID, "train.batch_size=4"]
    with Workplace(tmp_path / "searches", *rates) as place:
        place.search("sweep.name=alone").well()
        place.search("sweep.processes_per_trial=2").well()
        values = {trial.params["optim.lr"]: trial.value for trial in place.trials()}
        alone = open_study("alone", None, place.study_folder.with_name("alone")).trials
    assert len(values) == 2
    assert values == {trial.params["optim.lr"]: pytest.approx(trial.value, rel=1e-6) for trial in alone}
    outputs = [path.read_text(encoding="utf-8") for path in place.study_folder.glob("trial-*/output.txt")]
    assert len(outputs) == 2 and all("2 processes share each batch" in output for output in outputs)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (
            ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=3"],
            "type sweep.processes_per_trial=3",
        ),
        (["train.batch_size=5"], "train.batch_size=5 can't be shared equally by 2 processes"),
    ],
)
def test_a_search_says_what_two_processes_can_not_do(words, sentence, tmp_path):
    pytest.importorskip("submitit", reason="submitit isn't installed")
    with Workplace(
        tmp_path / "searches", ANY_LR, "sweep.processes_per_trial=2", "hydra.sweeper.n_trials=1"
    ) as place:
        search = place.search("sweep.max_failures=1", *words)
        assert search.returncode != 0 and sentence in search.err + search.out


def test_slots_have_as_many_gpus_as_a_trial_has_processes():
    gpus = ["0", "1", "4", "5"]
    assert [server.gpus_of({"slot": slot, "processes": 2}, gpus) for slot in range(3)] == [
        ["0", "1"],
        ["4", "5"],
        ["0", "1"],
    ]
    assert server.gpus_of({"slot": 5, "processes": 1}, gpus) == ["1"]


def test_the_commands_of_the_page_compose():
    page = (ROOT / "docs/parallel.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page.replace("\\\n", ""), flags=re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        if "run.py" in command:
            words = command[command.index("run.py") + 1 :]
            cfg = minllm.compose([word for word in words if not word.startswith("hydra")])
            assert cfg.train.batch_size == 64
