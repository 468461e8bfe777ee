"""What is typed and does nothing is refused; what does something, however little, isn't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import minllm
from minllm.config.compose import compose, perform
from minllm.errors import UserError
from minllm.model import unused
from minllm.model.build import build_model
from minllm.model.unused import refuse_unused
from minllm.tasks.train import train
from tests import test_laws

TINY = ["tokenizer=bytes", "model.dim=32", "data.seq_len=32"]

NOTHING = [
    ("model/layout=mamba model/attn=mha", "model/attn", "has 'attn'"),
    ("model/layout=mamba model/attn=gqa", "model/attn", "has 'attn'"),
    ("model/layout=mamba model/attn/mask=window", "model/attn/mask", "has 'attn'"),
    ("model/layout=mamba model.attn.n_heads=2", "model.attn.n_heads", "has 'attn'"),
    ("model/layout=mamba model/mlp=gelu", "model/mlp", "has 'mlp'"),
    ("model/layout=mamba model/mlp=none", "model/mlp", "has 'mlp'"),
    ("model/layout=recurrent model.attn.dropout=0.1", "model.attn.dropout", "has 'attn'"),
    ("+model/attn@model.local=mqa", "model.local|model/attn@model.local", "has 'local'"),
    ("model/rec=mamba", "model/rec", "has 'rec'"),
    ("model/layout=mamba model/pos=rope", "model/pos", "attention"),
    ("model/layout=mamba model/pos=alibi", "model/pos", "attention"),
    ("model/layout=mamba model.pos.theta=5", "model.pos.theta", "attention"),
    ("+model/pos@model.attn.pos=none model.pos.theta=7", "model.pos.theta", "attention"),
    ("norm=none norm.kind=layer", "norm.kind=layer", "nothing"),
    ("norm=none norm.eps=1e-3", "norm.eps=0.001", "nothing"),
    ("norm.kind=dyt norm.eps=1e-2", "norm.eps=0.01", "nothing"),
    ("norm.shared=false", "norm.shared=False", "nothing"),
    ("schedule.t_mult=3", "schedule.t_mult=3", "schedule"),
    ("schedule.restarts=0 schedule.t_mult=2.0", "schedule.t_mult=2.0", "schedule"),
    ("optim.weight_decay=0 optim.cautious_decay=true", "optim.cautious_decay=True", "optimizer"),
    ("sample.temperature=0 sample.top_k=4", "sample.top_k=4", "sampler"),
    ("model/mlp=moe_expert_choice sample.temperature=0.5", "sample.temperature", "can't generate"),
    ("size.by=hidden", "size.by", "size.params"),
]


@pytest.mark.parametrize(("words", "key", "why"), NOTHING, ids=[words for words, *_ in NOTHING])
def test_what_does_nothing_is_refused(words: str, key: str, why: str):
    with pytest.raises(UserError) as refusal:
        build_model(compose([*words.split(), *TINY]))
    sentence = str(refusal.value)
    assert any(sentence.startswith(one) for one in key.split("|")) and why in sentence, sentence


SOMETHING = [
    "model/layout=mamba",
    "model/layout=mamba model/pos=none",
    "model/layout=mamba model/pos=learned",
    "model/mlp=none",
    "model/layout=parallel norm.shared=false",
    "model.attn.dropout=0.1 model.dropout=0.2",
    "model.attn.softcap=30 model.softcap=50",
    "model/attn/mask=window model.attn.mask.window=64",
    "model/attn/mask=blocks model.attn.mask.n_global=7",
    "model/residual=layerscale model.residual.init=0.3",
    "model/residual=rezero model.mlp.hidden=48",
    "model/mlp=moe model.mlp.router.balance=0.3",
    "model/pos=t5 model.pos.max_distance=64",
    "model/pos=rope_yarn model.pos.slow=2.0",
    "schedule.restarts=2 schedule.t_mult=3 schedule.lr_min=0",
    "optim.beta1=0 optim.eps=1e-7",
    "norm.eps=1e-3 norm.bias=true",
    "sample.top_k=4 sample.seed=3",
    "experiment=min_grok seed=1",
]


@pytest.mark.parametrize("words", SOMETHING)
def test_what_does_something_is_not(words: str):
    tiny = TINY[:1] if "experiment" in words else TINY
    build_model(compose([*words.split(), *tiny]))


def test_looking_changes_no_random_numbers():
    drawn = []
    for words in ([], ["model.attn.dropout=0.0", "schedule.warmup_steps=3"]):
        torch.manual_seed(3)
        build_model(compose([*words, *TINY]))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


# ---- where it's looked at, and what that costs ---------------------------------------------------


def test_what_was_typed_for_a_run_is_not_judged_when_the_run_is_looked_at(tmp_path, capsys):
    """Neither beside what is typed for the look, nor where a run is from before such words were refused."""
    folder = tmp_path / "run"
    train(compose([*test_laws.TINY, "sample.top_k=5", f"data.cache={tmp_path / 'cache'}"]), folder)
    perform(compose(["task=generate", f"run={folder}", "sample.temperature=0", "prompts=[a]"]), tmp_path)
    file = folder / "config.yaml"
    saved = OmegaConf.load(file)
    saved.typed = [*saved.typed, "sample.temperature=0", "norm.shared=false", "schedule.t_mult=3"]
    saved.sample.temperature = 0
    OmegaConf.update(saved, "model.rec", saved.model.mlp, force_add=True)
    OmegaConf.save(saved, file)
    for state in folder.glob("checkpoints/*/state.json"):  # such runs didn't note what they are configured as
        state.write_text(json.dumps({**json.loads(state.read_text()), "configured": None}))
    minllm.load(folder)
    perform(compose([f"resume={folder}", f"data.cache={tmp_path / 'cache'}", "train.steps=4"]), tmp_path)
    assert "Continuing from step" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["sample.temperature=0 sample.top_k=4", "schedule.t_mult=3"])
def test_a_description_refuses_what_does_nothing(words: str):
    with pytest.raises(UserError, match="would do nothing"):
        perform(compose(["task=describe", *words.split(), *TINY]), Path())


def test_a_large_model_is_not_built_for_an_option_of_the_optimizer(monkeypatch: pytest.MonkeyPatch):
    built, build = [], unused.build
    monkeypatch.setattr(unused, "build", lambda node, *args: built.append(node) or build(node, *args))
    words = [
        "optim.lr=1e-3",
        "optim.beta1=0.8",
        "optim.weight_decay=0.2",
        "model.dim=8192",
        "model.n_layers=64",
    ]
    for optimizer in ("adamw", "muon", "lion", "sgd"):
        typed = [word for word in words if optimizer != "sgd" or "beta" not in word]
        typed = [word for word in typed if optimizer != "muon" or "beta" not in word]
        refuse_unused(compose([f"optim={optimizer}", *typed, "tokenizer=bytes"]))
    assert built and all("optimizers" in node._target_ for node in built)


def test_what_is_configured_is_computed_once_for_all_options(monkeypatch: pytest.MonkeyPatch):
    computed, compute = [], unused.COMPUTES["optim"]
    monkeypatch.setitem(unused.COMPUTES, "optim", lambda *given: computed.append(given) or compute(*given))
    typed = ["optim.lr=1e-3", "optim.beta1=0.8", "optim.weight_decay=0.2"]
    refuse_unused(compose([*typed, *TINY]))
    assert len(computed) == 1 + len(typed)
