"""Noise schedules of absorbing diffusion: how likely a token is masked at time t."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["log_linear", "cosine", "linear"]

LEAST = 1e-3
"""The smallest masking probability in training, which bounds the weights (LLaDA, 2502.09992)."""
RATE = 10.0
"""The integrated noise of the linear schedule at t = 1 (MDLM, 2406.07524)."""


def masking(t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return the probability that a token is masked at time `t` in [0, 1), and the weight of its loss.

    The weight p′(t) / p(t) makes the expected loss the evidence lower bound, which is the same for all schedules; they
    differ in how often they draw each p.

        log_linear   p = (1 − ε) t + ε
        cosine       p = 1 − cos(π/2 · t), clipped at ε
        linear       p = 1 − exp(−10 t), clipped at ε: the integrated noise is linear
    """
    if schedule == "log_linear":
        p = (1 - LEAST) * t + LEAST
        return p, (1 - LEAST) / p
    if schedule == "cosine":
        p, slope = 1 - torch.cos(math.pi / 2 * t), math.pi / 2 * torch.sin(math.pi / 2 * t)
    else:
        p, slope = 1 - torch.exp(-RATE * t), RATE * torch.exp(-RATE * t)
    p = p.clamp(min=LEAST)
    return p, slope / p
