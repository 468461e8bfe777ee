"""Several processes train the model that one would: the same losses, one folder, and one end."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import minllm
from minllm.errors import UserError
from minllm.runs import folder as rundir
from minllm.sweep import server
from minllm.sweep.store import open_study
from minllm.training import launched, loop, step
from minllm.training import train as task
from minllm.training.launched import Place, place
from tests.commands import ROOT, python
from tests.processes import environment, together
from tests.searches import ANY_LR, GRID, Workplace

PAIRS = ["data.packing=pad"]
CONFIGS = {
    "adamw": ["train.micro_batch_size=1", "data.packing=pack", "train.ema=0.9"],
    "muon": ["optim=muon", "model/attn=mha", "model.attn.value_residual=true", "model.loops=2"],
    "lion": [
        "optim=lion",
        "model/mlp=moe",
        "model.mlp.capacity=1.0",
        "model/residual=hyper",
        "train.clip=0.5",
    ],
    "sgd": ["optim=sgd", "model/mlp=moe_sigmoid", "train.clip=null", "optim.cautious_decay=true"],
    "diffuseq": [
        "objective=diffuseq",
        "objective.steps=4",
        "objective.draws=2",
        "model/attn=mha",
        "optim.lr=3e-4",
        *PAIRS,
    ],
    "masked": ["objective=masked", "model/mlp=moe", *PAIRS],
    "blocks": ["objective=blocks", "objective.block=8", *PAIRS],
    "span": ["objective=span", "model/encoder=same", "model/layout=decoder", "model/mlp=moe", *PAIRS],
    "mixture": [
        "objective=mixture",
        "model/encoder=same",
        "model/layout=decoder",
        "objective.weights.s=4",
        "model/mlp=moe_sigmoid",
        *PAIRS,
    ],
}
SHARDED = ("adamw", "muon", "lion", "sgd", "diffuseq")
JOBS = {
    2: [(name, "ddp") for name in CONFIGS] + [(name, "fsdp") for name in SHARDED],
    3: [(name, "ddp") for name in ("adamw", "lion", "span")] + [(name, "fsdp") for name in ("muon", "sgd")],
}
STEPS = 8


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    stores = tmp_path_factory.mktemp("stores")
    return [
        *(
            "data=tales",
            "data.train_stories=300",
            "data.val_stories=3",
            "data.seq_len=48",
            "data.stride=48",
            "tokenizer=bytes",
        ),
        *(
            "model.dim=16",
            "model.n_layers=2",
            "train.batch_size=6",
            f"train.steps={STEPS}",
            "train.log_every=1",
        ),
        *("train.eval_every=4", "train.checkpoint_every=0", "train.precision=fp32", "train.compile=false"),
        *(
            "train.check=false",
            "train.device=cpu",
            "sample.max_new_tokens=2",
            f"data.cache={stores}",
            "optim.lr=0.003",
        ),
    ]


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rundir, "environment", lambda: {"versions": {}})


def exact_orthogonalisation(monkeypatch):
    """Have Muon orthogonalise in fp32: rounded to bf16, a gradient's last bit changes the third digit of a step."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.float())


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    """The folders of all configurations, each trained by 1, 2 and 3 processes: folder / name / way."""
    folder = tmp_path_factory.mktemp("trained")
    importlib.import_module("minllm.training.sharding")  # or each process would
    fewer = ["train.steps=4", "train.eval_every=2"]
    configs = {name: minllm.compose([*words, *more, *fewer]) for name, more in CONFIGS.items()}

    def train_all(size):
        for name, parallel in JOBS[size]:
            cfg = configs[name].copy()
            cfg.train.parallel = parallel
            task.train(cfg, folder / name / f"{parallel}-{size}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rundir, "environment", lambda: {"versions": {}})
        exact_orthogonalisation(patch)
        for name, cfg in configs.items():
            task.train(cfg, folder / name / "1")
        for size in JOBS:
            codes = together(size, lambda rank, size=size: train_all(size), folder / "output")
            assert codes == [0] * size, (folder / "output").read_text()
    return folder


def header(file):
    """Return the part of a safetensors file before its tensors: their names, types and shapes, and metadata."""
    with file.open("rb") as opened:
        return opened.read(int.from_bytes(opened.read(8), "little"))


def events(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


CLOCK = {"seconds", "tokens_per_second", "memory_bytes", "mfu"}


def close(one, other, within=1e-6):
    """Assert that two runs recorded the same events, to the given relative difference."""
    assert len(one) == len(other)
    for event, expected in zip(one, other):
        assert event.keys() - CLOCK == expected.keys() - CLOCK
        for name in event.keys() - CLOCK:
            # norms amplify what losses don't show
            tolerance = 20 * within if name == "grad_norm" else within
            assert event[name] == pytest.approx(expected[name], rel=tolerance, abs=1e-7), (
                name,
                event["step"],
            )


@pytest.mark.parametrize(
    "size, name, parallel", [(size, *job) for size, jobs in JOBS.items() for job in jobs], ids=str
)
def test_several_processes_find_what_one_finds(trained, size, name, parallel):
    run, alone = trained / name / f"{parallel}-{size}", trained / name / "1"
    close(events(run), events(alone))
    summary = json.loads((run / "summary.json").read_text())
    expected = json.loads((alone / "summary.json").read_text())
    measured = {"tokens_per_second", "wall_seconds", "peak_memory_bytes", "below_floor", "mfu", "peak_flops"}
    for key, value in expected.items():
        if key not in measured and key not in ("best", "decisions", "choices"):
            assert summary[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), (
                key
            )
    assert summary["decisions"] == expected["decisions"]
    assert (run / "samples.txt").read_bytes() == (alone / "samples.txt").read_bytes()
    assert sorted(p.name for p in run.rglob("*")) == sorted(p.name for p in alone.rglob("*"))
    for file in run.rglob("*.safetensors"):
        assert header(file) == header(alone / file.relative_to(run))


def test_a_resumed_run_may_have_another_number_of_processes(words, tmp_path):
    # the schedule doesn't depend on the length of a run
    more = [
        "train.ema=0.9",
        "optim=muon",
        "train.parallel=fsdp",
        "schedule=constant",
        "schedule.warmup_steps=0",
    ]
    cfg = minllm.compose([*words, *more])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    shorter = {steps: minllm.compose([*words, *more, f"train.steps={steps}"]) for steps in (3, 6)}

    with pytest.MonkeyPatch.context() as patch:
        exact_orthogonalisation(patch)
        task.train(cfg, whole)
        first = together(2, lambda rank: task.train(shorter[3], parts), tmp_path / "output")
        task.train(shorter[6], parts, resume=str(parts))
        last = together(3, lambda rank: task.train(cfg, parts, resume=str(parts)), tmp_path / "output")
    assert first == [0, 0] and last == [0, 0, 0], (tmp_path / "output").read_text()
    expected = [event for event in events(whole) if "train_loss" in event]
    close([event for event in events(parts) if "train_loss" in event], expected)
    assert json.loads((parts / "summary.json").read_text())["steps"] == STEPS


def test_running_out_of_memory_in_one_process_halves_the_rows_of_all(words, tmp_path, monkeypatch):
    cfg = minllm.compose([*words, "model/mlp=moe"])
    rows = []

    def run(rank):
        from minllm.objective.causal import Causal

        loss = Causal.loss

        def limited(self, model, inputs):
            rows.append(len(inputs.tokens_BS))
            if rank == 1 and len(rows) == 3:
                raise MemoryError
            return loss(self, model, inputs)

        monkeypatch.setattr(Causal, "loss", limited)
        task.train(cfg, tmp_path / "run")
        print(f"process {rank}: {rows}")

    assert together(2, run, tmp_path / "output") == [0, 0], (tmp_path / "output").read_text()
    output = (tmp_path / "output").read_text()
    # two steps of 3 rows; then all try 3, 1, and go on with that
    assert "process 0: [3, 3, 3, 1, 1" in output and "process 1: [3, 3, 3, 1, 1" in output
    assert output.count("Memory ran out with 3 rows at a time: continuing with 1.") == 1
    assert len([event for event in events(tmp_path / "run") if "train_loss" in event]) == STEPS


def test_running_out_of_memory_with_shards_ends_all_and_names_the_option(words, tmp_path, monkeypatch):
    cfg = minllm.compose([*words, "train.parallel=fsdp"])

    def run(rank):
        def out_of_memory(*_):
            raise MemoryError

        at_step(monkeypatch, 2, lambda: rank == 1 and monkeypatch.setattr(step, "autocast", out_of_memory))
        task.train(cfg, tmp_path / "run")

    assert together(2, run, tmp_path / "output") == [1, 1]
    output = (tmp_path / "output").read_text()
    assert "sharded models can't go on with fewer by themselves: add train.micro_batch_size=1." in output
    assert output.count("raise memory.OutOfMemory(") == 1  # of one process


def test_running_out_of_memory_in_an_evaluation_with_shards_halves_the_rows_of_all(
    words, tmp_path, monkeypatch
):
    cfg = minllm.compose([*words, "train.parallel=fsdp"])

    def run(rank):
        from minllm.objective.causal import Causal

        nats = Causal.nats

        def limited(self, model, batch, noise):
            if rank == 1 and len(batch.tokens_BT) > 1:
                raise MemoryError
            return nats(self, model, batch, noise)

        monkeypatch.setattr(Causal, "nats", limited)
        task.train(cfg, tmp_path / "run")

    assert together(2, run, tmp_path / "output") == [0, 0], (tmp_path / "output").read_text()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["steps"] == STEPS and summary["decisions"]["micro_batch_size"] == 1


def at_step(monkeypatch, number, act):
    """Call `act` in this process when it has taken so many steps."""
    gradient = loop.whole_batch_gradient

    def acting(run, loss_of):
        if run.progress.step == number:
            act()
        return gradient(run, loss_of)

    monkeypatch.setattr(loop, "whole_batch_gradient", acting)


def test_a_signal_to_one_process_stops_all_after_a_checkpoint(words, tmp_path, monkeypatch):
    cfg = minllm.compose(words)

    def run(rank):
        at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM) if rank == 1 else None)
        task.train(cfg, tmp_path / "run")

    assert together(2, run, tmp_path / "output") == [128 + signal.SIGTERM] * 2
    assert (tmp_path / "run/checkpoints/step-000005").is_dir()
    assert (tmp_path / "output").read_text().count("Stopped at step 5.") == 1


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_a_restart_goes_on(words, tmp_path, monkeypatch, victim):
    cfg = minllm.compose([*words, "train.checkpoint_every=3", "train.eval_every=0"])
    run, output = tmp_path / "run", tmp_path / "output"

    def dies(rank):
        at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGKILL) if rank == victim else None)
        task.train(cfg, run)

    codes = together(2, dies, output)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1
    assert "Traceback" not in output.read_text()
    # what is alive keeps what it has
    assert max((run / "checkpoints").iterdir()).name == ("step-000003" if victim == 0 else "step-000004")
    assert together(2, lambda rank: task.train(cfg, run), output, restarts=1) == [0, 0], output.read_text()
    task.train(cfg, tmp_path / "undisturbed")
    close(events(run), events(tmp_path / "undisturbed"))


def test_an_error_in_one_process_is_reported_by_that_one_alone(words, tmp_path, monkeypatch):
    cfg = minllm.compose(words)

    def run(rank):
        at_step(monkeypatch, 2, lambda: 1 // (1 - rank))
        task.train(cfg, tmp_path / "run")

    assert together(2, run, tmp_path / "output") == [1, 1]
    output = (tmp_path / "output").read_text()
    assert output.count("Traceback") == 1 and "ZeroDivisionError" in output


def test_the_first_process_decides_when_the_time_is_up(words, tmp_path, monkeypatch):
    cfg = minllm.compose([*words, "train.steps=null", "train.minutes=0.005"])

    def run(rank):
        clock = time.perf_counter
        monkeypatch.setattr(loop.time, "perf_counter", lambda: clock() * (1 + rank))  # the second's is fast
        task.train(cfg, tmp_path / "run")

    assert together(2, run, tmp_path / "output") == [0, 0], (tmp_path / "output").read_text()


def test_a_batch_that_cannot_be_shared_equally_is_refused(words, tmp_path):
    def run(rank):
        with pytest.raises(
            UserError, match="train.batch_size=6 .* by 4 processes: .* such as train.batch_size=8"
        ):
            launched_processes(4).rows(6)

    run(0)


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["train.parallel=fsdp"], "type train.parallel=ddp"),
        (["model/mlp=moe"], "train with one process, or with model/mlp=moe_sigmoid"),
        (["model/mlp=moe_sigmoid"], None),
    ],
)
def test_processes_that_make_different_passes_do_not_wait_for_each_other_in_them(
    words, tmp_path, more, sentence
):
    mixture = ["objective=mixture", "model/encoder=same", "model/layout=decoder", "objective.weights.s=6"]
    cfg = minllm.compose([*words, *mixture, *more])
    codes = together(3, lambda rank: task.train(cfg, tmp_path / "run"), tmp_path / "output")
    output = (tmp_path / "output").read_text()
    assert codes == [1 if sentence else 0] * 3, output
    if sentence:
        assert sentence in output and not (tmp_path / "run").exists()
    else:
        task.train(cfg, tmp_path / "alone")
        close(events(tmp_path / "run"), events(tmp_path / "alone"))


def launched_processes(size):
    from minllm.training.parallel import Processes

    return Processes(Place(size=size))


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


def test_torchrun_prints_a_mistake_once(words, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, ROOT / "run.py", *words, "train.batch_size=7"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
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
    done = python(*words, "hydra/launcher=submitit_slurm", cwd=tmp_path, PATH=os.path.dirname(sys.executable))
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
