"""Small mixtures of experts, and what goes into them."""

from __future__ import annotations

import torch
from torch import Tensor

from minllm.config.compose import compose
from minllm.model.context import Context, Layer, Position
from minllm.model.mlp.moe import MoE
from minllm.schema.building import build
from tests.tiny import T

B, D, E = 3, 16, 4


def mixture(*overrides: str, option: str = "moe", sigma: float = 0.5) -> MoE:
    """Return the MLP of a configuration with every parameter drawn at `sigma`, in training."""
    sizes = [f"model.mlp.n_experts={E}", "model.mlp.expert.hidden=12"]
    cfg = compose([f"model/mlp={option}", *sizes, *overrides])
    module = build(cfg.model.mlp, D, Layer(0, 1, 2, build(cfg.norm)))
    torch.manual_seed(0)
    with torch.no_grad():
        for param in module.parameters():
            param.normal_(0, sigma)
    return module


def context(rows: int = B, length: int = T, segments: Tensor | None = None, counted=None) -> Context:
    positions_BT = torch.arange(length)[None]
    return Context(positions_BT, positions_BT, Position(D), segments, segments, counted)


def inputs(rows: int = B, length: int = T) -> Tensor:
    return torch.randn(rows, length, D, generator=torch.Generator().manual_seed(1))


def best(scores_E: Tensor, k: int) -> list[int]:
    return sorted(range(len(scores_E)), key=lambda e: -scores_E[e].item())[:k]
