"""Dense MLPs, with and without a gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.model.context import Context, Layer
from minllm.model.parameter import Linear, SplitLinear
from minllm.schema.options import BelowOne, Count, Positive

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2"]


class Ungated(nn.Module):
    """W₂ f(W₁ x), the MLP of the original transformer (1706.03762) with any activation; relu2 is 2109.08668.

    Args:
        hidden: hidden width, F; null means 4 D, or an expert's share of it.
        activation: f; gelu is exact, gelu_tanh its approximation.
        bias: add a bias to both products.
        dropout: share of the hidden values that is dropped in training.
    """

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        hidden: Count | None,
        activation: Activation,
        bias: bool,
        dropout: BelowOne,
    ):
        super().__init__()
        hidden, self.dropout = hidden or max(1, round(4 * dim * layer.share)), dropout
        self.activate = activation_named(activation)
        self.up = Linear(dim, hidden, stream="reads", bias=bias)
        self.down = Linear(hidden, dim, stream="writes", bias=bias, gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        y_BTF = self.activate(self.up(x_BTD))
        return self.down(F.dropout(y_BTF, self.dropout, self.training) if self.dropout else y_BTF)


class Gated(nn.Module):
    """W₂ (f(W_g x) ∘ W₁ x), a gated linear unit (2002.05202): SwiGLU with silu, GeGLU with gelu, ReGLU with relu.

    Args:
        hidden: hidden width, F; null means 8/3 D, for as many parameters as an ungated MLP of 4 D, or an expert's
            share of it.
        activation: f; gelu is exact, gelu_tanh its approximation.
        bias: add a bias to all products.
        dropout: share of the hidden values that is dropped in training.
    """

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        hidden: Count | None,
        activation: Activation,
        bias: bool,
        dropout: BelowOne,
    ):
        super().__init__()
        hidden, self.dropout = hidden or max(1, round(8 / 3 * dim * layer.share)), dropout
        self.activate = activation_named(activation)
        self.gate_up = SplitLinear(dim, [hidden, hidden], stream="reads", bias=bias)
        self.down = Linear(hidden, dim, stream="writes", bias=bias, gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD)
        y_BTF = self.gated(gate_BTF, up_BTF)
        return self.down(F.dropout(y_BTF, self.dropout, self.training) if self.dropout else y_BTF)

    def gated(self, gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
        return self.activate(gate_BTF) * up_BTF


class ClampedGated(Gated):
    """(up + 1) · gate · σ(1.702 gate), with the gate at most `limit` and up within ± `limit`: gpt-oss (2508.10925).

    Args:
        hidden, bias, dropout: see `Gated`.
        limit: bound of the values before the product.
    """

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        hidden: Count | None,
        bias: bool,
        dropout: BelowOne,
        limit: Positive,
    ):
        super().__init__(dim, layer, hidden=hidden, activation="silu", bias=bias, dropout=dropout)
        self.limit = limit

    def gated(self, gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
        gate_BTF = gate_BTF.clamp(max=self.limit)
        return (up_BTF.clamp(-self.limit, self.limit) + 1) * gate_BTF * torch.sigmoid(1.702 * gate_BTF)


def activation_named(name: Activation) -> Callable[[Tensor], Tensor]:
    """Return the activation function with this name."""
    return {
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "relu": F.relu,
        "relu2": lambda x: F.relu(x).square(),
    }[name]
