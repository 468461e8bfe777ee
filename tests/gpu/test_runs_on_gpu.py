"""Whole runs on a GPU: generation, running out of memory, going on, and searches that share the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minllm
from minllm.generation.generate import next_tokens
from minllm.generation.sampler import Sampling
from minllm.sweep import limits
from minllm.training import memory
from tests.test_training import CLOCK, TINY
from tests.tiny import tiny_model, tokens

ROOT = Path(__file__).resolve().parents[2]
CUDA = ["train.device=cuda"]


@pytest.fixture
def words(tmp_path, monkeypatch):
    """What is typed for the smallest run, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    text = "\n".join(f"{number} times {number} is {number**2}." for number in range(3000))
    Path("squares.txt").write_text(text, encoding="utf-8")
    return [*TINY, f"data.path={tmp_path / 'squares.txt'}", f"data.cache={tmp_path / 'stores'}", *CUDA]


@pytest.fixture
def unlimited():
    """Lift the limit of the device's memory after a test."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def figures(run: str) -> list[dict[str, float]]:
    """The metrics of a run without what depends on the clock."""
    lines = Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    clock = {*CLOCK, "mfu"}
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


GENERATING = [
    ("model/attn=gqa",),
    ("model/attn=mla",),
    ("model/attn=differential",),
    ("model/attn=gqa", "model/attn/mask=window"),
    *[
        (f"model/rec={name}",)
        for name in ("rglru", "min_gru", "mamba", "mamba2", "mega", "gated_deltanet", "gla")
    ],
]


@pytest.mark.parametrize("choices", GENERATING, ids=" ".join)
def test_generation_is_greedy_as_on_a_cpu(choices):
    rows = [row[: 5 + i].tolist() for i, row in enumerate(tokens(3, 9))]
    greedy = Sampling(temperature=0.0, top_k=None, top_p=1.0, min_p=0.0, max_new_tokens=14, seed=0)
    texts = []
    for device in ("cuda", "cpu"):
        model = tiny_model(*choices, randomised=True).to(device)
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        steps = [list(step) for step in next_tokens(model, rows, generators, greedy)]
        texts.append(steps)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_and_goes_on_where_it_stopped(words, precision):
    words = [*words, f"train.precision={precision}", "model.dropout=0.1"]
    whole = minllm.train(minllm.compose([*words, "train.steps=30", "optim.lr=1e-2"]), "whole")
    minllm.train(minllm.compose([*words, "train.steps=12", "optim.lr=1e-2"]), "parts")
    minllm.train(minllm.compose(["resume=parts", "train.steps=30"]))
    losses = [e["train_loss"] for e in figures("whole") if "train_loss" in e]
    assert losses[-1] < losses[0] - 0.3, f"from {losses[0]:.3f} to {losses[-1]:.3f}"
    by_step = {e["step"]: e["train_loss"] for e in figures("parts") if "train_loss" in e}
    resumed = [by_step[e["step"]] for e in figures("whole") if "train_loss" in e]
    print(
        "resumed to the bit"
        if resumed == losses
        else f"resumed within {max(map(abs, map(float.__sub__, resumed, losses))):.3g}"
    )
    assert resumed == pytest.approx(losses, rel=1e-5 if precision == "fp32" else 1e-3)
    assert whole["val_loss"] > 0 and whole["peak_memory_bytes"] > 0


def test_running_out_of_memory_halves_the_micro_batch(words, unlimited):
    """The losses are those of a run that had the memory."""
    torch.cuda.empty_cache()
    words = [*words, "data.seq_len=256", "train.batch_size=256", "train.steps=2", "model.dim=128"]
    words += ["model.n_layers=2", "train.precision=fp32", "model.attn.n_heads=4", "train.eval_every=0"]
    minllm.train(minllm.compose(words), "free")
    needed = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    limits.hold_to(
        int(torch.cuda.memory_reserved() + 0.4 * needed), torch.get_num_threads(), torch.device("cuda")
    )
    minllm.train(minllm.compose(words), "held")
    log = Path("held/log.txt").read_text(encoding="utf-8")
    assert "Memory ran out with 256 rows at a time" in log, f"{needed / 2**20:,.0f} MiB were needed\n{log}"
    free, held = ([e["train_loss"] for e in figures(run) if "train_loss" in e] for run in ("free", "held"))
    assert held == pytest.approx(free, rel=1e-4)


def test_a_limit_of_memory_is_held(unlimited):
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + (1 << 30)
    limits.hold_to(limit, torch.get_num_threads(), torch.device("cuda"))
    fits = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError) as raised:
        torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    assert memory.ran_out(raised.value) and fits.numel() == 1 << 29


def test_trials_at_once_share_the_free_memory():
    alone, of_two = (limits.free_bytes(torch.device("cuda"), n) for n in (1, 2))
    assert of_two == pytest.approx(alone / 2 if torch.cuda.device_count() == 1 else alone, rel=0.05)
    assert len(limits.gpus()) == torch.cuda.device_count()


@pytest.mark.parametrize("mixer", [[], ["model/rec=rglru", "model.layout=[rec mlp]"]], ids=["attn", "rec"])
def test_a_search_runs_its_trials_on_the_device(words, tmp_path, mixer):
    """Two at a time, in processes forked from a server, each with a part of the memory, which is predicted."""
    command = [
        sys.executable,
        str(ROOT / "sweep.py"),
        *words,
        *mixer,
        "search=none",
        "sweep.name=test",
        "train.steps=3",
    ]
    command += ["optim.lr=tag(log,interval(1e-3,1e-2))", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    folder = tmp_path / "outputs/sweeps/test"
    outputs = "\n".join(f"{path}:\n{path.read_text()[-1500:]}" for path in folder.glob("trial-*/*output*"))
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{outputs}"
    summaries = [json.loads(path.read_text()) for path in folder.glob("trial-*/summary.json")]
    assert len(summaries) == 3, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{outputs}"
    assert all(summary["peak_memory_bytes"] > 0 for summary in summaries)
    environments = [json.loads(path.read_text()) for path in folder.glob("trial-*/environment.json")]
    assert all(one["gpu"] for one in environments)
