"""Several processes train the model that one would: the same losses, one folder, and one end."""

import importlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from minllm.errors import UserError
from minllm.runs import folder as rundir
from minllm.training import loop, step
from minllm.training import train as task
from minllm.training.launched import Place
from minllm.training.process_group import process_group
from tests.processes import together
from tests.tiny import unjudged

MOE, MOE_SIGMOID = ([f"model/mlp={moe}", "model.mlp.n_experts=4"] for moe in ("moe", "moe_sigmoid"))
LAYERS = ["model.n_layers=2"]
PAIRS = ["data.packing=pad"]
CONFIGS = {
    "adamw": [*LAYERS, "train.micro_batch_size=1", "data.packing=pack", "train.ema=0.9"],
    "muon": [*LAYERS, "optim=muon", "model/attn=mha", "model.attn.value_residual=true", "model.loops=2"],
    "lion": [
        "optim=lion",
        *MOE,
        "model.mlp.capacity=1.0",
        "model/residual=hyper",
        "train.clip=0.5",
    ],
    "sgd": [*LAYERS, "optim=sgd", *MOE_SIGMOID, "train.clip=null", "optim.cautious_decay=true"],
    "diffuseq": [
        "objective=diffuseq",
        "objective.steps=4",
        "objective.draws=2",
        "model/attn=mha",
        "optim.lr=3e-4",
        *PAIRS,
    ],
    "masked": ["objective=masked", *MOE, *PAIRS],
    "blocks": ["objective=blocks", "objective.block=8", *PAIRS],
    "span": ["objective=span", "model/encoder=same", "model/layout=decoder", *MOE, *PAIRS],
    "mixture": [
        "objective=mixture",
        "model/encoder=same",
        "model/layout=decoder",
        "objective.weights.s=4",
        *MOE_SIGMOID,
        *PAIRS,
    ],
}
SHARDED = ("adamw", "muon", "lion", "sgd", "diffuseq")
THREE = [*((name, "ddp") for name in ("adamw", "lion", "span")), ("muon", "fsdp"), ("sgd", "fsdp")]
"""What three processes train. Their shards are of different sizes, so that two would show nothing more."""
JOBS = {
    2: [
        job
        for job in [*((name, "ddp") for name in CONFIGS), *((name, "fsdp") for name in SHARDED)]
        if job not in THREE
    ],
    3: THREE,
}
STEPS = 6


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    stores = tmp_path_factory.mktemp("stores")
    return [
        *(
            "data=tales",
            "data.train_stories=300",
            "data.val_stories=1",
            "data.seq_len=48",
            "data.stride=48",
            "tokenizer=bytes",
        ),
        *(
            "model.dim=16",
            "model.n_layers=1",
            "train.batch_size=6",
            f"train.steps={STEPS}",
            "train.log_every=1",
        ),
        *("train.eval_every=3", "train.checkpoint_every=0", "train.precision=fp32", "train.compile=false"),
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
    configs = {name: unjudged(*words, *more, *fewer) for name, more in CONFIGS.items()}

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
        *LAYERS,
        "train.ema=0.9",
        "optim=muon",
        "train.parallel=fsdp",
        "schedule=constant",
        "schedule.warmup_steps=0",
    ]
    cfg = unjudged(*words, *more)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    shorter = {steps: unjudged(*words, *more, f"train.steps={steps}") for steps in (2, 4)}

    with pytest.MonkeyPatch.context() as patch:
        exact_orthogonalisation(patch)
        task.train(cfg, whole)
        first = together(2, lambda rank: task.train(shorter[2], parts), tmp_path / "output")
        task.train(shorter[4], parts, resume=str(parts))
        last = together(3, lambda rank: task.train(cfg, parts, resume=str(parts)), tmp_path / "output")
    assert first == [0, 0] and last == [0, 0, 0], (tmp_path / "output").read_text()
    expected = [event for event in events(whole) if "train_loss" in event]
    close([event for event in events(parts) if "train_loss" in event], expected)
    assert json.loads((parts / "summary.json").read_text())["steps"] == STEPS


def test_running_out_of_memory_in_one_process_halves_the_rows_of_all(words, tmp_path, monkeypatch):
    cfg = unjudged(*words, *MOE)
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
    cfg = unjudged(*words, "train.parallel=fsdp")

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
    cfg = unjudged(*words, "train.parallel=fsdp")

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
    cfg = unjudged(*words)

    def run(rank):
        at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM) if rank == 1 else None)
        task.train(cfg, tmp_path / "run")

    assert together(2, run, tmp_path / "output") == [128 + signal.SIGTERM] * 2
    assert (tmp_path / "run/checkpoints/step-000005").is_dir()
    assert (tmp_path / "output").read_text().count("Stopped at step 5.") == 1


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_a_restart_goes_on(words, tmp_path, monkeypatch, victim):
    cfg = unjudged(*words, "train.checkpoint_every=3", "train.eval_every=0")
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
    cfg = unjudged(*words)

    def run(rank):
        at_step(monkeypatch, 2, lambda: 1 // (1 - rank))
        task.train(cfg, tmp_path / "run")

    assert together(2, run, tmp_path / "output") == [1, 1]
    output = (tmp_path / "output").read_text()
    assert output.count("Traceback") == 1 and "ZeroDivisionError" in output


def test_the_first_process_decides_when_the_time_is_up(words, tmp_path, monkeypatch):
    cfg = unjudged(*words, "train.steps=null", "train.minutes=0.005")

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


def test_a_parameter_that_only_one_process_reads_has_its_gradient_in_all(words, tmp_path):
    train = unjudged(*words).train

    def run(rank):
        read_by_all, read_by_one, read_by_none = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
        read_by_all.grad, loss = torch.full((3,), rank + 1.0), torch.tensor(rank + 0.5)
        if rank == 1:
            read_by_one.grad = torch.full((3,), 7.0)
        with process_group(train) as processes:
            model = torch.nn.ParameterList([read_by_all, read_by_one, read_by_none])
            processes.add_up_gradients(model, loss)
        assert [p.grad is None or p.grad.tolist() for p in model] == [[3.0] * 3, [7.0] * 3, True]
        assert loss == 2.0

    assert together(2, run, tmp_path / "output") == [0, 0], (tmp_path / "output").read_text()


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["train.parallel=fsdp"], "type train.parallel=ddp"),
        (MOE, "train with one process, or with model/mlp=moe_sigmoid"),
        (MOE_SIGMOID, None),
    ],
)
def test_processes_that_make_different_passes_do_not_wait_for_each_other_in_them(
    words, tmp_path, more, sentence
):
    mixture = ["objective=mixture", "model/encoder=same", "model/layout=decoder", "objective.weights.s=6"]
    cfg = unjudged(*words, *mixture, *more)
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
