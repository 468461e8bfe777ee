"""First options of one's own: what a constructor says is what a file may set, through `**options` too."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import minllm
from minllm import tracing
from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.schema.building import build
from minllm.schema.checking import options_of, validate

CODE = """
from collections.abc import Callable

import torch
from torch import nn

from minllm.model.context import Layer
from minllm.model.mlp.dense import Gated
from minllm.model.parameter import Linear
from minllm.schema.options import Count, Positive, factory
from minllm.training.optimizers import SGD


class Base(nn.Module):
    def __init__(self, dim, layer, *, rate: Positive, taps: Count = 2):
        super().__init__()
        self.rate, self.taps = rate, taps
        self.out = Linear(dim, dim, stream="writes")

    def forward(self, x_BTD, ctx):
        return self.out(x_BTD * self.rate)


class Variant(Base):
    def __init__(self, dim, layer, *, gain: Positive = 1.0, **options):
        super().__init__(dim, layer, **options)
        self.gain = gain

    def forward(self, x_BTD, ctx):
        return self.gain * super().forward(x_BTD, ctx)


class Further(Variant):
    def __init__(self, *args, offset: float, **options):
        super().__init__(*args, gain=3.0, **options)
        self.offset = offset

    def forward(self, x_BTD, ctx):
        return super().forward(x_BTD, ctx) + self.offset


class Gate(nn.Module):
    def __init__(self, width: int, *, sharp: Positive):
        super().__init__()
        self.inner, self.sharp = Linear(width, width, stream="within"), sharp

    def forward(self, x):
        return torch.sigmoid(self.sharp * self.inner(x))


class WithGate(Base):
    def __init__(self, dim, layer, *, gate: Callable[[int], nn.Module], **options):
        super().__init__(dim, layer, **options)
        self.gate = gate(dim)

    def forward(self, x_BTD, ctx):
        return super().forward(self.gate(x_BTD), ctx)


class WithBranch(Base):
    def __init__(self, dim, layer, *, gate: Callable[[int, Layer], nn.Module], **options):
        super().__init__(dim, layer, **options)


class Narrower(Gated):
    def __init__(self, dim, layer, **options):
        super().__init__(dim, layer, **options)


class Loose(nn.Module):
    def __init__(self, dim, layer, rate=0.1):
        super().__init__()


class Needy(nn.Module):
    def __init__(self, dim, layer, rate):
        super().__init__()

    def forward(self, x_BTD, ctx):
        return x_BTD


class LooseForward(Loose):
    def forward(self, x_BTD, ctx):
        return x_BTD


class NoContext(nn.Module):
    def __init__(self, dim, layer, *, rate: Positive):
        super().__init__()

    def forward(self, x_BTD):
        return x_BTD


class NoModule:
    def __init__(self, dim, layer, *, rate: Positive):
        pass


class Unnamed(Base):
    def __init__(self, dim, layer, *, rate: "Nowhere"):
        pass


class NoKind(Base):
    def __init__(self, dim, layer, *, inner=None, rate: Positive = 1.0):
        super().__init__(dim, layer, rate=rate)


def undeclared(dim: int, layer: object) -> nn.Module:
    return Base(dim, layer, rate=1.0)


@factory
def declared(dim: int, layer: object, *, rate: Positive) -> nn.Module:
    return Base(dim, layer, rate=rate)


@factory
def optimizer(model, *, lr: Positive) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)
"""


@pytest.fixture(autouse=True)
def idea(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ideas.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def option(target: str, **options: object) -> list[str]:
    """Write an option of model/mlp, and return the words that choose it."""
    Path("conf/model/mlp").mkdir(parents=True, exist_ok=True)
    OmegaConf.save({"_target_": f"ideas.{target}", **options}, "conf/model/mlp/mine.yaml")
    return ["extensions=[ideas]", "model/mlp=mine", "tokenizer=bytes", "model.dim=32", "data.seq_len=32"]


def composed(words: list[str], *more: str):
    cfg = compose([*words, *more], config_dir="conf")
    validate(cfg)
    return cfg


def test_a_variant_inherits_the_options_of_its_base():
    cfg = composed(option("Variant", rate=0.5), "+model.mlp.gain=2", "model.mlp.rate=0.25")
    module = build_model(cfg).layers[0]["mlp"].words["mlp"]
    assert (module.rate, module.taps, module.gain) == (0.25, 2, 2.0) and type(module.gain) is float
    assert "Variant" in str(tracing.trace(cfg))


def test_through_several_levels_and_without_what_is_settled():
    import ideas

    assert set(options_of(ideas.Variant)) == {"gain", "rate", "taps"}
    assert set(options_of(ideas.Further)) == {"offset", "rate", "taps"}
    module = build_model(composed(option("Further", rate=0.5, offset=1.0))).layers[0]["mlp"].words["mlp"]
    assert (module.rate, module.gain, module.offset) == (0.5, 3.0, 1.0)
    assert options_of(ideas.Narrower).keys() == options_of(ideas.Narrower.__mro__[1]).keys()


def test_an_inner_module_is_made_as_its_owner_says():
    """By a width alone, which makes no mixer and no MLP."""
    gate = {"_target_": "ideas.Gate", "sharp": 2.0}
    module = build_model(composed(option("WithGate", rate=0.5, gate=gate), "model.mlp.gate.sharp=3"))
    assert module.layers[0]["mlp"].words["mlp"].gate.sharp == 3.0
    for target, inner, says in (
        ("WithGate", "WithGate", "takes a module"),
        ("WithGate", "Settings", "takes a module"),
        ("WithBranch", "Gate", "takes a mixer or an MLP"),
    ):
        inner = "minllm.training.settings.Settings" if inner == "Settings" else f"ideas.{inner}"
        with pytest.raises(UserError, match=says):
            composed(option(target, rate=0.5, gate={"_target_": inner}))


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("Variant", {}, "model.mlp.rate is missing. Add it"),
        ("Variant", {"rate": -1}, "model.mlp.rate must be a number above 0"),
        ("Variant", {"rate": 1, "tapps": 2}, "model.mlp has no option 'tapps'. Did you mean 'taps'"),
        ("Further", {"rate": 1, "offset": 1, "gain": 2}, "model.mlp has no option 'gain'"),
        ("LooseForward", {"rate": 1}, "write a * before it: def"),
        ("Needy", {"rate": 1}, "its option rate isn't keyword-only; write a * before it"),
        ("Loose", {}, "it has no forward"),
        ("NoContext", {"rate": 1}, "def forward(self, x_BTD, ctx, state=None) for a mixer"),
        ("NoModule", {"rate": 1}, "model.mlp takes a mixer or an MLP, not ideas.NoModule"),
        ("Unnamed", {"rate": 1}, "annotates an option with 'Nowhere'"),
        ("NoKind", {"inner": {"_target_": "ideas.Base"}}, "annotate the parameter with"),
        ("undeclared", {}, "minllm.schema.options.factory"),
    ],
)
def test_first_mistakes(target: str, options: dict, says: str):
    with pytest.raises(UserError) as refusal:
        composed(option(target, **options))
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_function_may_be_declared():
    build_model(composed(option("declared", rate=0.5)))
    cfg = compose(["extensions=[ideas]", "optim={_target_: ideas.optimizer, lr: 1}", "tokenizer=bytes"])
    assert build(OmegaConf.create({"extensions": ["ideas"], "optim": {"_target_": "ideas.optimizer", "lr": 1}}).optim,
                 build_model(compose(["tokenizer=bytes"]))).defaults["lr"] == 1.0  # fmt: skip
    assert cfg.optim._target_


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("+choices.x=y", "choices.x can't be set"),
        ("+typed=[a]", "typed can't be set"),
        ("++typed=[a]", "typed can't be set"),
        ("model.softcap=1e-300", "Single precision"),
        ("model.attn.softcap=1e300", "Single precision"),
        ("optim.lr=1e-300", "Single precision"),
        ("optim.lr=inf", "above 0"),
        ("optim.weight_decay=1e39", "Single precision"),
        ("seed=99999999999999999999", "64 bits"),
        ("model.dim=99999999999999999999", "64 bits"),
        ("train.steps=-99999999999999999999", "1 or more"),
        ("data.max_tokens=99999999999999999999", "64 bits"),
        ("model.attn._target_=${missing}", "missing"),
        ("model._target_=${missing}", "missing"),
        ("tokenizer._target_=${missing}", "missing"),
        ("task._target_=???", "no value yet"),
        ("model.attn=${missing}", "missing"),
    ],
)
def test_values_that_make_no_sense(word: str, says: str):
    with pytest.raises(UserError) as refusal:
        validate(compose([word]))
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("optim", ["adamw", "lion", "muon"])
def test_no_momentum_is_a_momentum(optim: str):
    words = [
        f"optim={optim}",
        "optim.beta1=0",
        "train.steps=2",
        "tokenizer=bytes",
        "model.dim=16",
        "model.n_layers=1",
    ]
    words += ["data.train_stories=8", "data.val_stories=2", "data.seq_len=16", "train.batch_size=2"]
    assert minllm.train(compose([*words, "sample.max_new_tokens=2"]), "run")["val_loss"] > 0
