"""What breaks a law is refused before it is trained, by the name of the part that breaks it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.laws.laws import check_laws
from minllm.laws.specimen import LARGE, specimen
from minllm.model.context import PAD, Position
from minllm.model.norm import Norms, RMSNorm
from minllm.model.parameter import Linear, constant, parameter
from minllm.model.residual import Plain
from minllm.tasks.describe import describe
from minllm.training.train import train
from tests.tiny import tiny_cfg

# ---- mixers, each with one thing wrong -----------------------------------------------------------


class Mixer(nn.Module):
    """A sum of all earlier tokens of the document, which is as it should be; others inherit and break something."""

    def __init__(self, dim, layer):
        super().__init__()
        self.dim, self.out = dim, Linear(dim, dim, stream="writes")

    def forward(self, x_BTD, ctx, state=None):
        return self.out(self.mixed(x_BTD, ctx, state) + 1e-3 * self.added(x_BTD, ctx))

    def mixed(self, x_BTD, ctx, state):
        T = x_BTD.shape[1]
        earlier_BTS = torch.ones(T, T).tril().bool()[None]
        if ctx.segments_BT is not None:
            earlier_BTS = earlier_BTS & self.together(ctx.segments_BT)
        y_BTD = earlier_BTS.float() @ x_BTD / 4
        if state is not None:
            goes_on_BT1 = (ctx.positions_BT > torch.arange(T))[..., None]
            y_BTD = y_BTD + goes_on_BT1 * state.held[0][:, None]
            state.held[0] = y_BTD[:, -1]
        return y_BTD

    def together(self, segments_BT):
        return segments_BT[:, :, None] == segments_BT[:, None]

    def added(self, x_BTD, ctx):
        return torch.zeros_like(x_BTD)

    def init_state(self, batch, max_len, *, device, dtype):
        return Held([torch.zeros(batch, self.dim, device=device, dtype=dtype)])


@dataclass
class Held:
    held: list[Tensor] = field(default_factory=list)

    def tensors(self):
        return self.held


class NextToken(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD.roll(-1, 1)


class FarToken(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD.roll(-6, 1)


class MeanOfText(Mixer):
    def added(self, x_BTD, ctx):
        return 10 * x_BTD.mean(1, keepdim=True).expand_as(x_BTD)


class LargestOfText(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD.amax(1, keepdim=True).expand_as(x_BTD)


class WithinChunk(Mixer):
    """Each chunk of eight tokens sees its own end."""

    def added(self, x_BTD, ctx):
        chunks = x_BTD.split(8, 1)
        return torch.cat([chunk.mean(1, keepdim=True).expand_as(chunk) for chunk in chunks], 1)


class LateInLongTexts(Mixer):
    """Another computation for long texts, and a wrong one."""

    def added(self, x_BTD, ctx):
        return x_BTD.roll(-1, 1) if x_BTD.shape[1] > 128 else x_BTD


class BehindZero(NextToken):
    """A leak that no output shows at its initial weights."""

    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.gain = parameter(dim, kind="vector", draw=constant(0))

    def added(self, x_BTD, ctx):
        return self.gain * x_BTD.roll(-1, 1)


class OtherRow(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD.roll(1, 0)


class BatchMean(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD - x_BTD.mean(0, keepdim=True)


class OneText(Mixer):
    """Takes all documents of a row for one."""

    def together(self, segments_BT):
        return torch.ones_like(segments_BT[:, :, None] == segments_BT[:, None])


class RowPlaces(Mixer):
    """Places count from the row's beginning, not the document's."""

    def added(self, x_BTD, ctx):
        T = x_BTD.shape[1]
        return torch.arange(T)[:, None].sin() * x_BTD


class SeesPadding(Mixer):
    def together(self, segments_BT):
        is_pad_B1T = (segments_BT == PAD)[:, None]
        return (super().together(segments_BT) | is_pad_B1T) & (segments_BT != PAD)[:, :, None]

    def mixed(self, x_BTD, ctx, state):
        if ctx.segments_BT is None:
            return super().mixed(x_BTD, ctx, state)
        return (self.together(ctx.segments_BT).float() @ x_BTD) / 4


class IgnoresState(Mixer):
    def mixed(self, x_BTD, ctx, state):
        return super().mixed(x_BTD, ctx, None)


class OnlyPrompt(Mixer):
    """Remembers the prompt, and nothing of what follows."""

    def mixed(self, x_BTD, ctx, state):
        before = None if state is None else state.held[0]
        y_BTD = super().mixed(x_BTD, ctx, state)
        if state is not None and ctx.past:
            state.held[0] = before
        return y_BTD


class RemembersPadding(Mixer):
    """The state holds what padded a shorter prompt."""

    def mixed(self, x_BTD, ctx, state):
        y_BTD = super().mixed(x_BTD, ctx, state)
        if state is not None and not ctx.past:
            state.held[0] = x_BTD.sum(1) / 4
        return y_BTD


class Shift(nn.Module):
    """The token before, and no state to know it by."""

    def __init__(self, dim, layer):
        super().__init__()
        self.out = Linear(dim, dim, stream="writes")

    def forward(self, x_BTD, ctx):
        before_BTD = x_BTD.roll(1, 1) * (ctx.positions_BT > 0)[..., None]
        return self.out(before_BTD)


class Unused(Mixer):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.spare = parameter(dim, kind="vector", draw=constant(1))


class Detached(Mixer):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.scale = parameter(dim, kind="vector", draw=constant(1))

    def added(self, x_BTD, ctx):
        return self.scale.detach() * x_BTD


class TimesZero(Unused):
    def added(self, x_BTD, ctx):
        return 0 * self.spare * x_BTD


class Noisy(Mixer):
    def added(self, x_BTD, ctx):
        return torch.randn_like(x_BTD)


class Remembers(Mixer):
    """Keeps what it saw last, wherever that was."""

    last = 0.0

    def added(self, x_BTD, ctx):
        before, self.last = self.last, x_BTD.sum().item()
        return x_BTD + before


# ---- other parts, each with one thing wrong ------------------------------------------------------


class LookingMLP(nn.Module):
    def __init__(self, dim, layer):
        super().__init__()
        self.out = Linear(dim, dim, stream="writes")

    def forward(self, x_BTD, ctx):
        return self.out(x_BTD + 1e-3 * x_BTD.flip(1))


class LookingResidual(Plain):
    def read(self, stream, ctx):
        return stream + 1e-3 * stream.roll(-1, 1)


class LookingPosition(Position):
    def embed(self, x_BTD, ctx):
        return x_BTD + 1e-3 * x_BTD.roll(-1, 1)


class TimeNorm(RMSNorm):
    def forward(self, x):
        return super().forward(x / (1 + x.square().mean(1, keepdim=True)))


@dataclass(frozen=True, kw_only=True)
class TimeNorms(Norms):
    def make(self, dim):
        return TimeNorm(dim, affine=self.affine, bias=self.bias, eps=self.eps)


@functools.cache
def with_part(place: str, name: str, *choices: str):
    cfg = OmegaConf.create(OmegaConf.to_container(tiny_cfg("model/attn=mha", *choices)))
    node = OmegaConf.select(cfg, place)
    own = {"_target_": f"tests.test_laws.{name}"}
    cfg.data.seq_len = 256
    OmegaConf.update(cfg, place, {**node, **own} if place == "norm" else own, merge=False)
    cfg.extensions = ["tests"]
    return cfg


@pytest.mark.parametrize(
    "name, law",
    [
        *((name, "looks ahead") for name in ("NextToken", "FarToken", "MeanOfText", "LargestOfText")),
        *((name, "looks ahead") for name in ("WithinChunk", "BehindZero", "LateInLongTexts")),
        *((name, "mixes rows") for name in ("OtherRow", "BatchMean")),
        *(
            (name, "doesn't keep the documents of a row apart")
            for name in ("OneText", "RowPlaces", "SeesPadding")
        ),
        *((name, "doesn't decode as it trains") for name in ("IgnoresState", "OnlyPrompt", "Shift")),
        ("RemembersPadding", "reads padding in decoding"),
        *((name, "a parameter that no gradient reaches") for name in ("Unused", "Detached", "TimesZero")),
        *((name, "gives other outputs for the same text") for name in ("Noisy", "Remembers")),
    ],
)
def test_a_mixer_that_breaks_a_law_is_named(name, law):
    with pytest.raises(UserError, match=rf"^model\.attn \({name}\) .*{law}.*train.check=false"):
        check_laws(with_part("model.attn", name))


def test_a_mixer_that_keeps_the_laws_passes():
    assert "no look-ahead" in check_laws(with_part("model.attn", "Mixer"))


@pytest.mark.parametrize(
    "place, name, called",
    [
        ("model.mlp", "LookingMLP", r"model\.mlp \(LookingMLP\)"),
        ("model.residual", "LookingResidual", r"model\.residual \(LookingResidual\)"),
        ("model.pos", "LookingPosition", r"model\.pos \(LookingPosition\)"),
        ("norm", "TimeNorms", r"norm \(TimeNorm\)"),
    ],
)
def test_other_parts_are_named_too(place, name, called):
    with pytest.raises(UserError, match=f"^{called} looks ahead"):
        check_laws(with_part(place, name))


def test_what_leaks_behind_experts_is_still_found():
    """Experts that choose their tokens are declared to look ahead; an attention before them is not."""
    assert "declared" in check_laws(tiny_cfg("model/mlp=moe_expert_choice"))
    with pytest.raises(UserError, match=r"^model\.attn \(NextToken\) looks ahead"):
        check_laws(with_part("model.attn", "NextToken", "model/mlp=moe_expert_choice"))


# ---- where models are checked, and what a check leaves alone -------------------------------------

TINY = [
    *("model.dim=16", "model.n_layers=2", "model.dropout=0.1", "tokenizer=tales_512", "train.precision=fp32"),
    *(
        "data.train_stories=40",
        "data.val_stories=2",
        "data.seq_len=32",
        "train.steps=3",
        "train.batch_size=2",
    ),
    *("sample.max_new_tokens=4", "train.compile=false"),
]


@pytest.mark.parametrize("choices", [[], ["model/mlp=moe_sigmoid"]])
def test_figures_are_the_same_to_the_bit_with_and_without_the_check(choices, tmp_path):
    summaries = {}
    for check in ("true", "false"):
        torch.manual_seed(7)
        cfg = compose([*TINY, *choices, f"train.check={check}"])
        summaries[check] = train(cfg, tmp_path / check)
        summaries[check]["next"] = torch.rand(1).item()
    names = ("val_loss", "val_bpb", "next")
    assert [summaries["true"][name] for name in names] == [summaries["false"][name] for name in names]
    assert summaries["true"]["checked"] is True and summaries["false"]["checked"] is False
    assert "no look-ahead" in (tmp_path / "true/log.txt").read_text()
    assert "Unchecked" in (tmp_path / "false/log.txt").read_text()
    weights = [
        next((tmp_path / one).rglob("step-000003/model.safetensors")).read_bytes() for one in summaries
    ]
    assert weights[0] == weights[1]


def test_random_numbers_go_on_as_if_nothing_had_been_checked():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_laws(tiny_cfg("model/mlp=moe", "model/attn=mha"))
    assert torch.equal(torch.rand(3), expected)


def test_a_run_is_refused_before_anything_is_written(tmp_path):
    cfg = compose([*TINY, "extensions=[tests]", "+model.own._target_=tests.test_laws.NextToken"])
    cfg.model.layout = ["own mlp"]
    with pytest.raises(UserError, match=r"^model\.own \(NextToken\) looks ahead"):
        train(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    cfg.train.check = False
    assert train(cfg, tmp_path / "run")["checked"] is False


def test_a_description_is_refused_too(tmp_path):
    cfg = compose([*TINY, "extensions=[tests]", "+model.own._target_=tests.test_laws.NextToken"])
    cfg.model.layout = ["own mlp"]
    with pytest.raises(UserError, match=r"^model\.own \(NextToken\) looks ahead"):
        describe(cfg, tmp_path, against=None)


def test_a_large_model_is_checked_in_a_smaller_one():
    """Of 24 layers and 2,048 channels, 1.3e9 parameters, a few layers are computed with; each sentence is there."""
    words = [
        "model.dim=2048",
        "model.n_layers=24",
        "model.layout=[attn mlp,attn+mlp]",
        "model.attn.n_heads=16",
    ]
    model = specimen(compose(words))
    assert sum(p.numel() for p in model.parameters()) < LARGE
    assert [list(layer) for layer in model.layers] == [["attn", "mlp"], ["attn+mlp"]] * 2
