"""Differential attention: the difference of two attention maps, which cancels their common noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.model.attention.attention import Core, heads
from minllm.model.attention.cache import Cache, cache
from minllm.model.attention.mask import Full
from minllm.model.context import Context, Layer
from minllm.model.parameter import Linear, SplitLinear, normal, parameter
from minllm.schema.options import BelowOne, Count


class DifferentialAttention(nn.Module):
    """(softmax(q₁ k₁ᵀ) − λ softmax(q₂ k₂ᵀ)) v, with each head then divided by its root mean square (2410.05258).

    λ = exp(a₁·b₁) − exp(a₂·b₂) + λ₀ is learned per layer; λ₀ = 0.8 − 0.6 exp(−0.3 · layer).

    Args:
        n_heads: H; each has two queries and two keys of width K, and values of width 2K.
        n_kv_heads: G; null means H.
        head_dim: K; null means D / 2H, for the same number of parameters as attention with 2H heads.
        mask, dropout: see `minllm.model.attention.attention.Attention`.
    """

    bidirectional = True
    untransferable = "λ is a sum over the width of a head"

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        n_heads: Count,
        n_kv_heads: Count | None,
        head_dim: Count | None,
        mask: Callable[[], Full],
        dropout: BelowOne,
    ):
        super().__init__()
        H, G, K = heads(dim, 2 * n_heads, 2 * (n_kv_heads or n_heads), head_dim)
        self.n_kv_heads, self.head_dim, self.rotated_dim = G // 2, K, K
        self.eps = layer.norms.eps
        self.first_lambda = 0.8 - 0.6 * math.exp(-0.3 * layer.index)
        self.qkv = SplitLinear(dim, [H * K, G * K, G * K], stream="reads")
        self.lambdas_22K = parameter(2, 2, K, kind="vector", draw=normal(0.1))
        self.core = Core(H, K, n_maps=2, mask=mask, dropout=dropout)
        self.out = Linear(H * K, dim, stream="writes", gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Cache | None = None) -> Tensor:
        q, k, v = self.qkv(x_BTD)
        K = self.head_dim
        # J = 2K; the first half of the H heads here are q₁ and k₁, the second q₂ and k₂
        q_BHTK, k_BGTK, v_BGTJ = (
            x.unflatten(-1, (-1, width)).transpose(1, 2) for x, width in ((q, K), (k, K), (v, 2 * K))
        )
        q_BHTK, k_BGTK = ctx.position.rotate(q_BHTK, ctx), ctx.position.rotate(k_BGTK, ctx)
        # the cache has G heads of width 2K for both keys and values
        k_BGTJ = torch.cat(k_BGTK.chunk(2, dim=1), dim=-1)
        k_BGSJ, v_BGSJ, first = k_BGTJ, v_BGTJ, 0
        if state is not None:
            (k_BGSJ, v_BGSJ), first, ctx = state.extend([k_BGTJ, v_BGTJ], ctx)
        k_BGSK, v_BGSJ = torch.cat(k_BGSJ.chunk(2, dim=-1), dim=1), v_BGSJ.repeat(1, 2, 1, 1)
        y1_BHTJ, y2_BHTJ = self.core(q_BHTK, k_BGSK, v_BGSJ, ctx, ctx.position, first).chunk(2, dim=1)
        y_BHTJ = F.rms_norm(y1_BHTJ - self._lambda() * y2_BHTJ, (2 * K,), eps=self.eps)
        return self.out((1 - self.first_lambda) * y_BHTJ.transpose(1, 2).flatten(2))

    def _lambda(self) -> Tensor:
        lambda1, lambda2 = (self.lambdas_22K[0] * self.lambdas_22K[1]).sum(-1).exp().unbind()
        return lambda1 - lambda2 + self.first_lambda

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Cache:
        widths = [2 * self.head_dim] * 2
        reach = self.core.mask.reach
        return cache(widths, self.n_kv_heads, batch, max_len, reach, device=device, dtype=dtype)
