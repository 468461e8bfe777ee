"""At first, neither embedded tokens nor branches drown each other in the stream, whatever the model is made of.

Attention that begins with tokens far smaller than what branches add to them hardly learns.
"""

from __future__ import annotations

import pytest
import torch

from minllm.model.lm import LM
from tests.tiny import VOCAB, completed, groups_of_model, options, tiny_model

CHOICES = [choice for group in groups_of_model() for choice in options(group)]


@pytest.mark.parametrize("choice", [*CHOICES, "model.tie_embeddings=false"])
def test_tokens_branches_and_logits_begin_at_one_scale(choice):
    added, logits = initial_scales(tiny_model(*completed(choice)))
    assert added < 4, "what the branches add, relative to the embedded tokens"
    assert 0.3 < logits < 1


OF_THE_STREAM = ("norm=", "model/pos=", "model/residual=deepnorm")
"""Choices whose stream has a scale of its own: that of norms, or of positions."""


@pytest.mark.parametrize("scale", [False, 0.1, 5.0])
@pytest.mark.parametrize("choice", [choice for choice in CHOICES if not choice.startswith(OF_THE_STREAM)])
def test_branches_begin_at_the_scale_of_tokens_that_are_multiplied_otherwise(choice, scale):
    # as an option of the model, so that a choice is composed once for all scales
    added, _ = initial_scales(tiny_model(*completed(choice), scale_embedding=scale))
    assert added < 4


@torch.no_grad()
def initial_scales(model: LM) -> tuple[float, float]:
    """Return the root mean square of what branches add to embedded tokens, relative to theirs, and of the logits."""
    seen = {}

    def finished(stream: torch.Tensor) -> torch.Tensor:
        seen["last"] = model.branches()[0].residual.finish(stream)
        return in_order(stream)

    def streamed(x_BTD: torch.Tensor, *others: object) -> torch.Tensor:
        seen["first"] = x_BTD
        return begin(x_BTD, *others)

    in_order, begin = model._finished, model._stream
    model._finished, model._stream = finished, streamed
    tokens_BT = torch.randint(VOCAB, (4, 20), generator=torch.Generator().manual_seed(0))
    logits_BTV = model(tokens_BT)
    first, last = seen["first"], seen["last"]
    return float((rms(last - first)) / rms(first)), float(rms(logits_BTV))


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()
