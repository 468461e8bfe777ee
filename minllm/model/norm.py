"""Norms, and where in a branch they are applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.model.parameter import constant, parameter
from minllm.schema.options import Positive


@dataclass(frozen=True, kw_only=True)
class Norms:
    """The norms of a model: their kind, and at which of three points of each branch they are applied.

            stream ──┬──► before ──► module ──► after ──┐
                     └─────────────────────────────────(+)──► residual ──► stream

    pre = before (2002.04745); post = residual (1706.03762); sandwich = before + after (2105.13290, minGrok, Gemma 2);
    branch = after (OLMo 2, 2501.00656).
    """

    kind: Literal["rms", "rms_1p", "layer", "cosine", "l2", "dyt"]
    before: bool
    after: bool
    residual: bool
    shared: bool
    """Branches joined by a plus share one input norm (GPT-J, PaLM); if false, each has its own (GPT-NeoX)."""
    embedding: bool
    """Add a norm after the embedding, as in BLOOM."""
    final: bool
    """Add a norm after the last layer."""
    affine: bool
    """A gain per channel; without it and without a bias the norm has no parameters, as in OLMo (2402.00838)."""
    bias: bool
    eps: Positive

    def make(self, dim: int) -> Norm:
        """Return a norm over `dim` channels."""
        kinds = {
            "rms": RMSNorm,
            "rms_1p": RMSNorm1p,
            "layer": LayerNorm,
            "cosine": CosineNorm,
            "l2": ScaleNorm,
            "dyt": DynamicTanh,
        }
        return kinds[self.kind](dim, affine=self.affine, bias=self.bias, eps=self.eps)


class Norm(nn.Module):
    """A norm over the last dimension, followed by an optional gain and bias per channel."""

    def __init__(self, dim: int, *, affine: bool = True, bias: bool = False, eps: float = 1e-5):
        super().__init__()
        self.weight = self.gain(dim) if affine else None
        self.bias = parameter(dim, kind="vector", draw=constant(0)) if bias else None
        self.dim, self.eps = dim, eps

    def gain(self, dim: int) -> nn.Parameter:
        return parameter(dim, kind="vector", draw=constant(1))

    def affine(self, x: Tensor) -> Tensor:
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias


class RMSNorm(Norm):
    """Divide by the root mean square (1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x, (self.dim,), self.weight, self.eps)
        return y if self.bias is None else y + self.bias


class RMSNorm1p(Norm):
    """RMSNorm with gains 1 + w, so that weight decay pulls them towards 1, as in Gemma (2403.08295)."""

    def gain(self, dim: int) -> nn.Parameter:
        return parameter(dim, kind="vector", draw=constant(0))

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x, (self.dim,), None if self.weight is None else 1 + self.weight, self.eps)
        return y if self.bias is None else y + self.bias


class LayerNorm(Norm):
    """Subtract the mean, divide by the standard deviation (1607.06450)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)


class CosineNorm(Norm):
    """Divide by the L2 norm, so that the dot product of two normed vectors is their cosine."""

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(F.normalize(x, dim=-1, eps=self.eps))


class ScaleNorm(Norm):
    """Divide by the L2 norm and multiply by one learned length, initially √dim (1910.05895)."""

    def gain(self, dim: int) -> nn.Parameter:
        return parameter(1, kind="vector", draw=constant(dim**0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = F.normalize(x, dim=-1, eps=self.eps)
        return self.affine(y if self.weight is not None else y * self.dim**0.5)


class DynamicTanh(Norm):
    """tanh(αx) with a learned α, which bounds activations without any statistics (DyT, 2503.10622)."""

    def __init__(self, dim: int, *, affine: bool = True, bias: bool = False, eps: float = 1e-5):
        super().__init__(dim, affine=affine, bias=bias, eps=eps)
        self.alpha = parameter(1, kind="vector", draw=constant(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(torch.tanh(self.alpha * x))
