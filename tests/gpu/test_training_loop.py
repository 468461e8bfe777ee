"""The training loop on a CUDA device: no synchronisation in a step, batches ahead, recomputation, utilisation."""

import math
import threading
from pathlib import Path

import pytest
import torch

import minllm
from minllm.training import step as steps
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

    monkeypatch.setattr(minllm.training.loop, "update", watched)
    train(words, f"optim={optim}", "train.steps=8", "train.log_every=4", run_dir="run")
    assert len(updates) == 8


def test_a_pass_forward_and_backward_makes_the_host_wait_for_nothing(words, monkeypatch):
    """Eager steps choose the rows that count, whose number the host must know; compiled ones don't."""
    gradient = steps.whole_batch_gradient

    def watched(run, loss_of):
        if run.progress.step >= 3:
            torch.cuda.set_sync_debug_mode("error")
        try:
            return gradient(run, loss_of)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(minllm.training.loop, "whole_batch_gradient", watched)
    train(words, "train.compile=true", "train.steps=8", "train.log_every=4", run_dir="run")


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
