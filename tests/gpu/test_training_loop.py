"""The training loop on a CUDA device: no synchronisation in a step, batches ahead, recomputation, utilisation."""

import json
import math
import threading
from pathlib import Path

import pytest
import torch

import minllm
from minllm.errors import UserError
from minllm.objective.causal import Causal
from minllm.training import loop
from minllm.training import step as steps
from minllm.training.graphs import GradientGraph
from minllm.training.step import Diverged
from minllm.training.utilisation import device_peak

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

TINY = ["tokenizer=bytes", "model.dim=64", "model.n_layers=2", "model.attn.n_heads=4", "data=text"]
TINY += ["data.seq_len=32", "train.batch_size=4", "train.compile=false", "train.check=false"]
TINY += ["train.device=cuda", "train.eval_every=0", "train.checkpoint_every=0", "train.sample_every=0"]
TINY += ["sample.max_new_tokens=4", "schedule=constant", "schedule.warmup_steps=1"]


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(f"{number} times {number} is {number**2}." for number in range(60))
    Path("squares.txt").write_text(text, encoding="utf-8")
    return [*TINY, f"data.path={tmp_path / 'squares.txt'}", f"data.cache={tmp_path / 'stores'}"]


def train(words, *more, run_dir):
    return minllm.train(minllm.compose([*words, *more]), Path(run_dir))


@pytest.mark.parametrize("optim", ["adamw", "muon", "lion", "sgd"])
def test_the_optimizers_step_makes_the_host_wait_for_nothing(words, monkeypatch, optim):
    """torch raises an error at any operation that synchronises, while an update is made."""
    update, updates = steps.update, []

    def watched(run, lr):
        if run.progress.step >= 3:  # the first steps allocate the optimizer's state
            torch.cuda.set_sync_debug_mode("error")
        try:
            updates.append(1)
            return update(run, lr)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "update", watched)
    train(words, f"optim={optim}", "train.steps=8", "train.log_every=4", run_dir="run")
    assert len(updates) == 8


def test_a_pass_forward_and_backward_makes_the_host_wait_for_nothing(words, monkeypatch):
    """Eager steps choose the rows that count, whose number the host must know; compiled ones don't."""
    gradient = steps.whole_batch_gradient

    def watched(run, loss_of):
        if run.progress.step >= 5:  # the first passes are timed, and one is captured
            torch.cuda.set_sync_debug_mode("error")
        try:
            return gradient(run, loss_of)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "whole_batch_gradient", watched)
    train(words, "train.compile=true", "train.steps=8", "train.log_every=4", run_dir="run")


def losses(run_dir):
    events = [json.loads(line) for line in Path(run_dir, "metrics.jsonl").read_text("utf-8").splitlines()]
    return {
        e["step"]: {k: v for k, v in e.items() if k in ("train_loss", "grad_norm", "val_loss")}
        for e in events
    }


def assert_near(ours, theirs):
    assert ours.keys() == theirs.keys()
    for step, figures in ours.items():
        assert figures == pytest.approx(theirs[step], rel=1e-3), f"step {step}"


GRAPHS = ["train.compile=true", "train.steps=14", "train.log_every=1", "model.dropout=0.1", "train.ema=0.9"]
GRAPHS += ["train.batch_size=5", "train.micro_batch_size=2", "train.eval_every=4", "train.sample_every=8"]


@pytest.mark.parametrize("optim", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_change_no_result(words, precision, optim):
    """With dropout, micro-batches of two sizes, and evaluations of the average in between.

    Results differ by rounding even between equal runs: gradients of embeddings are added up in any order.
    """
    more = [*GRAPHS, f"train.precision={precision}", f"optim={optim}", "train.checkpoint_every=5"]
    train(words, *more, "train.graphs=false", run_dir="plain")
    train(words, *more, "train.graphs=true", run_dir="graphs")
    assert_near(losses("graphs"), losses("plain"))
    train(words, *more, "train.graphs=true", "train.steps=8", run_dir="parts")
    minllm.train(minllm.compose(["resume=parts", "train.steps=14"]))
    assert losses("parts")[14] == pytest.approx(losses("plain")[14], rel=1e-3)


def test_the_log_says_whether_graphs_are_captured(words, capsys):
    train(words, "train.compile=true", "train.steps=6", run_dir="run")
    assert "Capturing CUDA graphs" in capsys.readouterr().out


def test_a_model_whose_host_waits_is_not_captured(words, monkeypatch, capsys):
    loss = Causal.loss

    def waiting(self, model, inputs):
        result = loss(self, model, inputs)
        return result if result.item() > -1 else -result

    monkeypatch.setattr(Causal, "loss", waiting)
    train(words, *GRAPHS, "train.graphs=false", run_dir="plain")
    train(words, *GRAPHS, run_dir="auto")
    assert "Not capturing CUDA graphs: in a pass of this model, the host waits" in capsys.readouterr().out
    assert_near(losses("auto"), losses("plain"))
    with pytest.raises(UserError, match="the host waits for the device"):
        train(words, *GRAPHS, "train.graphs=true", run_dir="wanted")


def test_a_graph_is_freed_when_memory_runs_out(words, monkeypatch):
    """The micro-batch is halved in a step after the capture, and a graph of the smaller one is captured."""
    more = [
        "train.compile=true",
        "train.graphs=true",
        "train.steps=12",
        "train.log_every=1",
        "train.batch_size=4",
    ]
    train(words, *more, run_dir="plain")
    step, sizes = GradientGraph.__call__, []

    def running_out(self, rows, counted):
        sizes.append((len(rows.tokens_BS), self.graph is not None))
        if len(sizes) == 7:
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")
        return step(self, rows, counted)

    monkeypatch.setattr(GradientGraph, "__call__", running_out)
    train(words, *more, run_dir="halved")
    assert sizes[6] == (4, True) and sizes[7] == (2, False) and sizes[-1] == (2, True)
    assert_near(losses("halved"), losses("plain"))


def test_the_thread_that_prepares_batches_ends_with_the_run(words, monkeypatch):
    taken = []
    prepared = steps.prepared
    monkeypatch.setattr(
        steps,
        "prepared",
        lambda run, step: taken.append(threading.current_thread().name) or prepared(run, step),
    )
    train(words, "train.steps=5", run_dir="run")
    assert len(taken) >= 5 and all(name.startswith("batches") for name in taken)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_divergence_on_the_device_ends_the_run_within_steps(words):
    with pytest.raises(Diverged, match="NaN or infinite at step"):
        train(
            words, "train.steps=500", "train.log_every=400", "optim.lr=1e20", "train.clip=null", run_dir="run"
        )
    assert not list(Path("run/checkpoints").glob("step-*"))


@pytest.mark.parametrize("recompute", ["branches", "layers"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_takes_less_memory_and_changes_no_loss(words, recompute, precision):
    more = ["train.steps=6", "model.dropout=0.1", "model.n_layers=6", "data.seq_len=256"]
    more += ["train.batch_size=16", f"train.precision={precision}"]
    plain = train(words, *more, run_dir="plain")
    less = train(words, *more, f"train.recompute={recompute}", run_dir="less")
    assert less["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-3 if precision == "fp32" else 1e-2)
    assert less["peak_memory_bytes"] < plain["peak_memory_bytes"]


def test_a_compiled_run_recomputes_too(words):
    more = ["train.steps=6", "model.dropout=0.1", "train.precision=fp32"]
    plain = train(words, *more, run_dir="plain")
    both = train(words, *more, "train.recompute=layers", "train.compile=true", run_dir="both")
    assert both["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-3)


def test_utilisation_is_a_share_of_the_peak(words):
    summary = train(words, "train.steps=20", run_dir="run")
    assert 0 < summary["mfu"] < 1 and summary["peak_flops"] > 1e12
    fast = device_peak(torch.device("cuda"), "fp32", "high").flops
    assert math.isfinite(fast) and fast >= device_peak(torch.device("cuda"), "fp32", "highest").flops
