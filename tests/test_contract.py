"""The first mistakes of a new idea are refused in a sentence that names the part and the cure, before training."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.model.context import Position
from minllm.model.norm import Norms
from minllm.model.parameter import Linear, constant, parameter
from minllm.model.residual import Plain
from tests.tiny import VOCAB, tiny_cfg


class Good(nn.Module):
    """A mixer without mistakes, which mixes nothing; others make one."""

    def __init__(self, dim, layer):
        super().__init__()
        self.dim, self.out = dim, Linear(dim, dim, stream="writes")

    def forward(self, x_BTD, ctx, state=None):
        return self.returned(self.out(x_BTD), x_BTD, state)

    def returned(self, y_BTD, x_BTD, state):
        return y_BTD

    def init_state(self, batch, max_len, *, device, dtype):
        return Nothing()


class Nothing:
    def tensors(self):
        return []


# ---- what PyTorch doesn't know of -----------------------------------------------------------------


class PlainTensor(Good):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.scale = torch.ones(dim)


class TensorsInADict(Good):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.scales = {"a": torch.ones(dim)}


class ListOfModules(Good):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.heads = [Linear(dim, dim, stream="within")]


class ListOfParameters(Good):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.gains = [parameter(dim, kind="vector", draw=constant(1.0))]


class OpenEnded(Good, abc.ABC):
    @abc.abstractmethod
    def mixed(self): ...


# ---- parameters ----------------------------------------------------------------------------------


class PlainLinear(Good):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.proj = nn.Linear(dim, dim)


class PlainParameter(Good):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.gain = nn.Parameter(torch.ones(dim))


class PlainNorm(Good):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.inner = nn.Sequential(nn.LayerNorm(dim))


class PlainConv(Good):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.conv = nn.Conv1d(dim, dim, 3)


# ---- signatures ----------------------------------------------------------------------------------


class NoLayer(nn.Module):
    def __init__(self, dim):
        super().__init__()


class NoArguments(nn.Module):
    def __init__(self):
        super().__init__()


class Swapped(Good):
    def __init__(self, layer, dim):
        super().__init__(dim, layer)


class NoSuper(nn.Module):
    def __init__(self, dim, layer):
        self.out = Linear(dim, dim, stream="writes")

    def forward(self, x_BTD, ctx):
        return self.out(x_BTD)


class NoModule:
    def __init__(self, dim, layer):
        pass


class NoContext(Good):
    def forward(self, x_BTD):
        return x_BTD


class RequiredState(Good):
    def forward(self, x_BTD, ctx, state):
        return x_BTD


class KeywordState(Good):
    def forward(self, x_BTD, ctx, *, state=None):
        return x_BTD


class NoForward(nn.Module):
    def __init__(self, dim, layer):
        super().__init__()


class NoStateArgument(Good):
    def forward(self, x_BTD, ctx):
        return x_BTD


class NoInitState(nn.Module):
    def __init__(self, dim, layer):
        super().__init__()

    def forward(self, x_BTD, ctx, state=None):
        return x_BTD


class ShortInitState(Good):
    def init_state(self, batch):
        return Nothing()


# ---- what is returned ----------------------------------------------------------------------------


class ReturnsNone(Good):
    def returned(self, y_BTD, x_BTD, state):
        return None


class ReturnsTuple(Good):
    def returned(self, y_BTD, x_BTD, state):
        return y_BTD, state


class TupleWithState(Good):
    def returned(self, y_BTD, x_BTD, state):
        return y_BTD if state is None else (y_BTD, state)


class Narrow(Good):
    def returned(self, y_BTD, x_BTD, state):
        return y_BTD[..., :1]


class Transposed(Good):
    def returned(self, y_BTD, x_BTD, state):
        return y_BTD.transpose(0, 1)


class Flat(Good):
    def returned(self, y_BTD, x_BTD, state):
        return y_BTD.flatten(0, 1)


class Double(Good):
    def returned(self, y_BTD, x_BTD, state):
        return y_BTD.double()


class Half(Good):
    def returned(self, y_BTD, x_BTD, state):
        return y_BTD.bfloat16()


class NotANumber(Good):
    def returned(self, y_BTD, x_BTD, state):
        return y_BTD / (y_BTD - y_BTD)


class InPlace(Good):
    def returned(self, y_BTD, x_BTD, state):
        x_BTD += y_BTD
        return x_BTD.clone()


class MasksInPlace(Good):
    def returned(self, y_BTD, x_BTD, state):
        x_BTD[:, 0] = 0
        return y_BTD


# ---- states --------------------------------------------------------------------------------------


class TensorState(Good):
    def init_state(self, batch, max_len, *, device, dtype):
        return torch.zeros(batch, self.dim, device=device, dtype=dtype)


class NoState(Good):
    def init_state(self, batch, max_len, *, device, dtype):
        return None


class DictState(Good):
    def init_state(self, batch, max_len, *, device, dtype):
        return {"sum": torch.zeros(batch)}


class WordState(Good):
    def init_state(self, batch, max_len, *, device, dtype):
        return SimpleNamespace(tensors=lambda: "none")


# ---- residuals, positions, norms -----------------------------------------------------------------


class BareResidual(nn.Module):
    def __init__(self, dim, layer):
        super().__init__()


class PlainResidual(Plain):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.gain = nn.Parameter(torch.ones(dim))


class NothingWritten(Plain):
    def write(self, stream, y_BTD, ctx):
        return None


class ReadsNarrow(Plain):
    def read(self, stream, ctx):
        return stream[..., :3]


class WritesInPlace(Plain):
    def write(self, stream, y_BTD, ctx):
        return stream.add_(y_BTD)


class BarePosition(nn.Module):
    def __init__(self, dim):
        super().__init__()


class PositionOfLayer(Position):
    def __init__(self, dim, layer):
        super().__init__(dim)


class NarrowNorm(nn.Module):
    def forward(self, x):
        return x.mean(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class NarrowNorms(Norms):
    def make(self, dim):
        return NarrowNorm()


@dataclass(frozen=True, kw_only=True)
class NoNorms(Norms):
    def make(self, dim):
        return lambda x: x


def built_with(place: str, name: str) -> nn.Module:
    cfg = OmegaConf.create(OmegaConf.to_container(tiny_cfg("model/attn=mha")))
    node = OmegaConf.select(cfg, place)
    own = {"_target_": f"tests.test_contract.{name}"}
    if place.endswith("expert"):
        own = OmegaConf.to_container(tiny_cfg("model/mlp=moe").model.mlp) | {"expert": own}
        place = "model.mlp"
    OmegaConf.update(cfg, place, {**node, **own} if place == "norm" else own, merge=False)
    cfg.extensions = ["tests"]
    return build_model(cfg, SimpleNamespace(vocab_size=VOCAB))


def test_a_mixer_without_mistakes_is_built():
    assert built_with("model.attn", "Good")


MISTAKES = {
    "PlainTensor": r"scale is a plain tensor.*self.register_buffer\('scale'",
    "TensorsInADict": "scales is a plain tensor.*register_buffer",
    "ListOfModules": "heads is a list of modules.*nn.ModuleList",
    "ListOfParameters": "gains is a list of parameters.*nn.ParameterList",
    "OpenEnded": "must define mixed",
    "PlainLinear": "plain nn.Linear.*minllm.model.parameter.Linear",
    "PlainParameter": r"gain is a plain nn.Parameter.*minllm.model.parameter.parameter\(",
    "PlainNorm": r"plain nn.LayerNorm.*layer.norms.make\(dim\)",
    "PlainConv": "plain nn.Conv1d.*minllm.model.parameter",
    "NoLayer": r"__init__\(self, dim, layer",
    "NoArguments": r"__init__\(self, dim, layer",
    "Swapped": r"__init__\(self, dim, layer",
    "NoSuper": r"super\(\).__init__\(\)",
    "NoModule": "must be a torch.nn.Module",
    "NoContext": r"forward\(self, x_BTD, ctx",
    "NoForward": r"forward\(self, x_BTD, ctx",
    "RequiredState": r"forward\(self, x_BTD, ctx, state=None\)",
    "KeywordState": r"forward\(self, x_BTD, ctx, state=None\)",
    "NoStateArgument": r"forward\(self, x_BTD, ctx, state=None\)",
    "NoInitState": r"has no init_state.*init_state\(self, batch, max_len",
    "ShortInitState": r"init_state\(self, batch, max_len",
    "ReturnsNone": "returns None",
    "ReturnsTuple": "returns a tuple of 2",
    "TupleWithState": "returns a tuple of 2",
    "Narrow": r"returns shape \(1, 2, 1\)",
    "Transposed": r"returns shape \(2, 1, 32\)",
    "Flat": r"returns shape \(2, 32\)",
    "Double": r"returns torch.float64.*\.to\(x_BTD.dtype\)",
    "Half": r"returns torch.bfloat16.*\.to\(x_BTD.dtype\)",
    "NotANumber": "returns NaN or infinity",
    "InPlace": "changes its input in place",
    "MasksInPlace": "changes its input in place",
    "TensorState": r"init_state\(\) returns a Tensor.*tensors\(\)",
    "NoState": r"init_state\(\) returns None.*tensors\(\)",
    "DictState": r"init_state\(\) returns a dict.*tensors\(\)",
    "WordState": "must return a list of tensors",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_mixer_is_told_with_its_cure(name):
    with pytest.raises(UserError, match=rf"^model\.attn\b.*{MISTAKES[name]}"):
        built_with("model.attn", name)


@pytest.mark.parametrize(
    "place, called", [("model.mlp", r"model\.mlp"), ("model.mlp.expert", r"(an expert|model\.mlp\.expert)")]
)
@pytest.mark.parametrize(
    "name", ["PlainLinear", "NoLayer", "NoContext", "ReturnsTuple", "Narrow", "ReturnsNone"]
)
def test_a_mistake_in_an_mlp_is_told_too(place, called, name):
    with pytest.raises(UserError, match=f"^{called}.*{MISTAKES[name].replace('(1, 2, 1', '(1, .*1')}"):
        built_with(place, name)


@pytest.mark.parametrize(
    "place, name, told",
    [
        ("model.residual", "BareResidual", "inherit from minllm.model.residual.Plain"),
        ("model.residual", "NothingWritten", r"write\(\) returns None"),
        ("model.residual", "ReadsNarrow", r"read\(\) returns shape \(1, 2, 3\)"),
        ("model.residual", "WritesInPlace", r"write\(\) changes the stream in place"),
        ("model.residual", "PlainResidual", "plain nn.Parameter"),
        ("model.residual", "NoLayer", "inherit from minllm.model.residual.Plain"),
        ("model.pos", "BarePosition", "inherit from minllm.model.context.Position"),
        ("model.pos", "PositionOfLayer", "its option layer isn't keyword-only"),
        ("norm", "NarrowNorms", r"\(NarrowNorm\) returns shape"),
        ("norm", "NoNorms", "must be a torch.nn.Module"),
    ],
)
def test_mistakes_in_other_parts_are_told_too(place, name, told):
    with pytest.raises(UserError, match=f"^{place}.*{told}"):
        built_with(place, name)
