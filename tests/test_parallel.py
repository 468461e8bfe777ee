"""Several processes train the model that one would: the same losses, one folder, and one end."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

import minllm
from minllm.errors import UserError
from minllm.runs import folder as rundir
from minllm.training import launched, loop, memory, step
from minllm.training import train as task
from minllm.training.launched import Place, place
from tests.processes import together

PAIRS = ["data.packing=pad", "data.seq_len=96"]
CONFIGS = {
    "adamw": ["train.micro_batch_size=1", "data.packing=pack", "data.seq_len=64", "train.ema=0.9"],
    "muon": ["optim=muon", "model/attn=mha", "model.attn.value_residual=true", "model.loops=2"],
    "lion": [
        "optim=lion",
        "model/mlp=moe",
        "model.mlp.capacity=1.0",
        "model/residual=hyper",
        "train.clip=0.5",
    ],
    "sgd": ["optim=sgd", "model/mlp=moe_sigmoid", "train.clip=null", "optim.cautious_decay=true"],
    "diffuseq": ["objective=diffuseq", "objective.steps=4", "model/attn=mha", *PAIRS],
    "masked": ["objective=masked", "model/mlp=moe", *PAIRS],
    "blocks": ["objective=blocks", "objective.block=8", *PAIRS],
    "span": ["objective=span", "model/encoder=same", "model/layout=decoder", "model/mlp=moe", *PAIRS],
}
SHARDED = ("adamw", "muon", "lion", "sgd", "diffuseq")
STEPS = 12


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    stores = tmp_path_factory.mktemp("stores")
    return [
        *("data=tales", "data.train_stories=300", "data.val_stories=7", "data.seq_len=24", "tokenizer=bytes"),
        *(
            "model.dim=16",
            "model.n_layers=2",
            "train.batch_size=6",
            f"train.steps={STEPS}",
            "train.log_every=1",
        ),
        *("train.eval_every=6", "train.checkpoint_every=0", "train.precision=fp32", "train.compile=false"),
        *("train.check=false", "sample.max_new_tokens=2", f"data.cache={stores}", "optim.lr=0.003"),
    ]


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rundir, "environment", lambda: {"versions": {}})


def exact_orthogonalisation(monkeypatch):
    """Have Muon orthogonalise in fp32: rounded to bf16, the last bit of a gradient changes the fourth digit of a step."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.float())


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    """The folders of all configurations, each trained by 1, 2 and 3 processes: folder / name / way."""
    folder = tmp_path_factory.mktemp("trained")
    configs = {name: minllm.compose([*words, *more]) for name, more in CONFIGS.items()}
    jobs = [(name, "ddp") for name in CONFIGS] + [(name, "fsdp") for name in SHARDED]

    def train_all(rank, size):
        for name, parallel in jobs:
            cfg = configs[name].copy()
            cfg.train.parallel = parallel
            if size > 1 or parallel == "ddp":
                task.train(cfg, folder / name / (f"{parallel}-{size}" if size > 1 else "1"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rundir, "environment", lambda: {"versions": {}})
        exact_orthogonalisation(patch)
        train_all(0, 1)
        for size in (2, 3):
            codes = together(size, lambda rank, size=size: train_all(rank, size), folder / "output")
            assert codes == [0] * size, (folder / "output").read_text()
    return folder


def events(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


CLOCK = {"seconds", "tokens_per_second", "memory_bytes"}


def close(one, other, within=1e-6):
    """Assert that two runs recorded the same events, to the given relative difference."""
    assert len(one) == len(other)
    for event, expected in zip(one, other):
        assert event.keys() == expected.keys()
        for name in event.keys() - CLOCK:
            # norms amplify what losses don't show
            tolerance = 20 * within if name == "grad_norm" else within
            assert event[name] == pytest.approx(expected[name], rel=tolerance, abs=1e-7), (
                name,
                event["step"],
            )


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "name, parallel", [(name, "ddp") for name in CONFIGS] + [(name, "fsdp") for name in SHARDED]
)
def test_several_processes_find_what_one_finds(trained, name, parallel, size):
    run, alone = trained / name / f"{parallel}-{size}", trained / name / "1"
    close(events(run), events(alone))
    summary = json.loads((run / "summary.json").read_text())
    expected = json.loads((alone / "summary.json").read_text())
    measured = {"tokens_per_second", "wall_seconds", "peak_memory_bytes", "below_floor"}
    for key, value in expected.items():
        if key not in measured and key not in ("best", "decisions", "choices"):
            assert summary[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), (
                key
            )
    assert summary["decisions"] == expected["decisions"]
    assert (run / "samples.txt").read_bytes() == (alone / "samples.txt").read_bytes()
    assert sorted(p.name for p in run.rglob("*")) == sorted(p.name for p in alone.rglob("*"))
