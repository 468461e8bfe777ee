"""Laws broken where it hardly shows: in training only, in long texts, in other batches, behind closed gates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from minllm.errors import UserError
from minllm.laws.laws import check_laws
from minllm.model.lm import LM
from minllm.model.parameter import constant, parameter
from minllm.objective.causal import Causal
from tests.test_laws import Mixer, with_part


class LateInVeryLongTexts(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD.roll(-1, 1) if x_BTD.shape[1] > 200 else x_BTD


class InTraining(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD.roll(-1, 1) if self.training else x_BTD


class WithGradients(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD.roll(-1, 1) if torch.is_grad_enabled() else x_BTD


class OverAllCounted(Mixer):
    """Looks ahead where it is told which targets count, as objectives do."""

    def added(self, x_BTD, ctx):
        return x_BTD if ctx.counted_BT is None else x_BTD.roll(-1, 1)


class BehindSigmoid(Mixer):
    """A gate that is closed at first, and nearly so for all weights close to that."""

    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.gate = parameter(1, kind="vector", draw=constant(-12))

    def added(self, x_BTD, ctx):
        return torch.sigmoid(self.gate) * x_BTD.roll(-1, 1)


class BatchMeanInTraining(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD - x_BTD.mean(0, keepdim=True) * self.training


class OneRowAlone(Mixer):
    """Another computation for a single row, and a wrong one."""

    def added(self, x_BTD, ctx):
        return x_BTD * (1 + (len(x_BTD) == 1))


class ManyRows(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD * (1 + (len(x_BTD) > 4))


class ShortDocuments(Mixer):
    """A document of one token sees the one before."""

    def together(self, segments_BT):
        same = super().together(segments_BT)
        is_alone_BT1 = same.sum(2, keepdim=True) == 1
        return same | (is_alone_BT1 & same.roll(-1, 2))


class NaNInLongTexts(Mixer):
    def added(self, x_BTD, ctx):
        return x_BTD if x_BTD.shape[1] < 200 else x_BTD / 0


class BatchNormed(Mixer):
    def __init__(self, dim, layer):
        super().__init__(dim, layer)
        self.norm = nn.BatchNorm1d(dim, affine=False)

    def added(self, x_BTD, ctx):
        return self.norm(x_BTD.mT).mT


def with_own(place, name):
    cfg = with_part("model.attn", "Mixer").copy()
    OmegaConf.update(cfg, f"{place}._target_", f"{__name__}.{name}")
    return cfg


@pytest.mark.parametrize(
    "name, law",
    [
        *((name, "looks ahead") for name in ("LateInVeryLongTexts", "OverAllCounted")),
        *((name, "mixes rows") for name in ("OneRowAlone", "ManyRows")),
        ("ShortDocuments", "doesn't keep the documents of a row apart"),
        ("NaNInLongTexts", "returns NaN or infinity in a text of 256 tokens"),
    ],
)
def test_a_mixer_that_breaks_a_law_somewhere_is_named(name, law):
    with pytest.raises(UserError, match=rf"^model\.attn \({name}\) {law}"):
        check_laws(with_own("model.attn", name))


@pytest.mark.parametrize(
    "name, law",
    [
        *((name, "looks ahead") for name in ("InTraining", "WithGradients", "BehindSigmoid")),
        ("BatchMeanInTraining", "mixes rows"),
    ],
)
def test_what_a_mixer_does_in_training_only_is_seen_too(name, law):
    with pytest.raises(UserError, match=rf"^In training, model\.attn \({name}\) {law}"):
        check_laws(with_own("model.attn", name))


def test_a_batch_norm_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"^model\.attn: BatchNormed has a batch norm"):
        check_laws(with_own("model.attn", "BatchNormed"))


class Unlike(Causal):
    """Evaluates to something else than the next tokens' cost."""

    def nats(self, model, batch, noise):
        return 0.5 * super().nats(model, batch, noise)


class HalfOfThem(Causal):
    def nats(self, model, batch, noise):
        even_T = torch.arange(batch.targets_BT.shape[1]) % 2 == 0
        return super().nats(
            model, replace(batch, targets_BT=batch.targets_BT.masked_fill(even_T, -100)), noise
        )


class ToldTheTarget(Causal):
    def nats(self, model, batch, noise):
        return super().nats(model, replace(batch, tokens_BT=batch.targets_BT.clamp(min=0)), noise)


class OwnHead(LM):
    """Logits that the loss knows nothing of."""

    def logits(self, x):
        return 2 * super().logits(x)


class LookingHead(LM):
    def logits(self, x):
        return super().logits(x + x.roll(-1, -2))


@pytest.mark.parametrize("name", ["Unlike", "HalfOfThem", "ToldTheTarget"])
def test_an_objective_that_evaluates_to_something_else_is_refused(name):
    with pytest.raises(UserError, match=rf"^objective \({name}\) evaluates to"):
        check_laws(with_own("objective", name))


@pytest.mark.parametrize(
    "name, law", [("OwnHead", r"objective \(Causal\) evaluates to"), ("LookingHead", "The model looks ahead")]
)
def test_a_head_from_outside_keeps_the_laws(name, law):
    with pytest.raises(UserError, match=f"^{law}"):
        check_laws(with_own("model", name))
