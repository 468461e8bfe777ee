"""Tokens in a continuous space: the parameters that map between it and the model, which DiffuSeq (2210.08933) has."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.model.lm import LM
from minllm.model.parameter import Linear
from minllm.objective.importance import TimeSteps

EMBEDDING_STD = 0.02
"""Standard deviation of the initial embeddings of tokens, which aren't multiplied by `model.scale_embedding`."""
UNIT = 1 / EMBEDDING_STD
"""Brings them to the scale of the noise."""
TIMES = 1000
"""Time steps are rescaled to this range before they are embedded."""


class Parts(nn.Module):
    """The parameters that map between embeddings, the noised space and the model's stream, and the drawn time steps."""

    def __init__(self, dim: int, width: int, steps: int):
        super().__init__()
        self.project = Linear(dim, width, stream="within")
        self.up = nn.Sequential(
            Linear(width, dim, stream="within", bias=True),
            nn.Tanh(),
            Linear(dim, dim, stream="writes", bias=True),
        )
        self.of_time = nn.Sequential(
            Linear(width, 4 * width, stream="within", bias=True),
            nn.SiLU(),
            Linear(4 * width, dim, stream="writes", bias=True),
        )
        self.down = nn.Sequential(
            Linear(dim, dim, stream="reads", bias=True),
            nn.Tanh(),
            Linear(dim, width, stream="within", bias=True),
        )
        self.times = TimeSteps(steps)

    def time(self, t_B: Tensor) -> Tensor:
        """Return the embedding of times in (0, 1], (B, D)."""
        return self.of_time(_waves(TIMES * t_B, self.of_time[0].weight.shape[1]))


def embedded(model: LM, tokens: Tensor) -> Tensor:
    """Return the embeddings of tokens (…) in the noised space, (…, W), in full precision."""
    with torch.autocast(tokens.device.type, enabled=False):
        return model.parts.project(UNIT * F.embedding(tokens, model.embedding))


def for_head(model: LM, x: Tensor) -> Tensor:
    """Return the head's input for points of the noised space: logits are inner products with embeddings, if tied."""
    return F.linear(UNIT * x, model.parts.project.weight.T)


def rounded(pull_TW: Tensor, precision: Tensor, all_VW: Tensor, *, soft: bool) -> Tensor:
    """Return the mean embedding under p(e) ∝ exp(pull · e − precision/2 ‖e‖²), or the most probable one.

    These are Gaussian observations of an embedding, each of which adds its precision, and its value times that to
    `pull`.
    """
    with torch.autocast(pull_TW.device.type, enabled=False):
        logits_TV = pull_TW @ all_VW.T - precision / 2 * all_VW.square().sum(1)
        return logits_TV.softmax(1) @ all_VW if soft else all_VW[logits_TV.argmax(1)]


def _waves(t_B: Tensor, width: int) -> Tensor:
    """Return cosines and sines of times, with periods from 2π to 20,000π, (B, W)."""
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=t_B.device) * (-math.log(10_000) / half))
    angles = t_B.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)[:, :width]
