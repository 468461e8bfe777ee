"""Multi-head, grouped-query and multi-query attention: one class, three values of `n_kv_heads`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Layer
from minllm.model.mask import Full
from minllm.model.mixers.cache import Cache, cache
from minllm.model.mixers.core import Core, Weights
from minllm.model.parameter import Linear, SplitLinear, constant, parameter
from minllm.model.position import Position
from minllm.options import BelowOne, Count, Positive


class Attention(nn.Module):
    """Softmax attention (1706.03762) in which H query heads share G key/value heads.

    G = H is multi-head attention, G = 1 multi-query attention (1911.02150), all between grouped-query attention
    (2305.13245).

    Args:
        dim: width of the residual stream, D.
        layer: where this module stands.
        n_heads: query heads, H.
        n_kv_heads: key/value heads, G; null means H.
        head_dim: width of a head, K; null means D / H.
        mask: which keys a query may see besides what causality and segments leave (`model/attn/mask`).
        pos: positions of its own; null means the model's (`model/pos`).
        qk_norm: norm queries and keys, each head by itself (2010.04245) or all heads together as in OLMo 2.
        scale: what products of queries and keys are multiplied by; null means 1/√K.
        softcap, sinks, weights: see `Core`.
        output_gate: multiply what each head gives by a sigmoid of the input (2505.06708).
        value_residual: from the second layer on, mix values with those of the first attention (2410.17897).
        qkv_bias: add a bias to queries, keys and values.
        out_bias: add a bias to the output.
        dropout: share of the attention weights that is dropped in training.

    Raises:
        UserError: the heads can't be shared evenly, or D can't be.
    """

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        n_heads: Count,
        n_kv_heads: Count | None,
        head_dim: Count | None,
        mask: Callable[[], Full],
        pos: Callable[[int], Position] | None,
        qk_norm: Literal["head", "full"] | None,
        scale: Positive | None,
        softcap: Positive | None,
        sinks: bool,
        weights: Weights,
        output_gate: bool,
        value_residual: bool,
        qkv_bias: bool,
        out_bias: bool,
        dropout: BelowOne,
    ):
        super().__init__()
        H, G, K = heads(dim, n_heads, n_kv_heads, head_dim)
        self.n_kv_heads, self.head_dim, self.rotated_dim = G, K, K
        self.position = own_position(pos, dim)
        self.qkv = SplitLinear(dim, [H * K, G * K, G * K], stream="reads", bias=qkv_bias)
        self.qk_norm = qk_norm
        if qk_norm is not None:
            each = (1, 1) if qk_norm == "head" else (H, G)
            self.q_norm, self.k_norm = (layer.norms.make(n * K) for n in each)
        # the first layer has no earlier values to mix its own with
        mixes = value_residual and layer.index > 0
        self.value_mix = parameter(2, kind="vector", draw=constant(0.5)) if mixes else None
        self.shares_values = value_residual
        self.core = Core(
            H, mask=mask, scale=scale, softcap=softcap, sinks=sinks, weights=weights, dropout=dropout
        )
        self.gate = Linear(dim, H * K, stream="reads") if output_gate else None
        self.out = Linear(H * K, dim, stream="writes", bias=out_bias, gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Cache | None = None) -> Tensor:
        position = self.position or ctx.position
        q_BHTK, k_BGTK, v_BGTK = self._project(x_BTD)
        q_BHTK = position.rotate(q_BHTK, ctx)
        k_BGSK = position.rotate(k_BGTK, ctx)
        v_BGSK = self._mixed_values(v_BGTK, ctx) if self.shares_values else v_BGTK
        first = 0
        if state is not None:
            (k_BGSK, v_BGSK), first = state.extend([k_BGSK, v_BGSK], ctx.past)
        y_BHTK = self.core(q_BHTK, k_BGSK, v_BGSK, ctx, position, first)
        y = y_BHTK.transpose(1, 2).flatten(2)
        return self.out(y if self.gate is None else y * torch.sigmoid(self.gate(x_BTD)))

    def _project(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.qkv(x_BTD)
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q_BHTK, k_BGTK, v_BGTK = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        if self.qk_norm == "head":
            q_BHTK = self.q_norm(q_BHTK)
            k_BGTK = self.k_norm(k_BGTK)
        return q_BHTK, k_BGTK, v_BGTK

    def _mixed_values(self, v_BGTK: Tensor, ctx: Context) -> Tensor:
        """Mix a layer's values with those of the first attention; those of the first layer are left as they are."""
        first_BGTK = ctx.once("first values", lambda: v_BGTK)
        if first_BGTK.shape != v_BGTK.shape:
            raise UserError(
                f"value_residual mixes {v_BGTK.shape[1]} heads of width {v_BGTK.shape[3]} with the first attention's"
                f" {first_BGTK.shape[1]} of width {first_BGTK.shape[3]}: give all attentions the same n_kv_heads and"
                " head_dim, or leave it out."
            )
        if self.value_mix is None:
            return v_BGTK
        return self.value_mix[0] * v_BGTK + self.value_mix[1] * first_BGTK

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Cache:
        K, reach = self.head_dim, self.core.mask.reach
        return cache([K, K], self.n_kv_heads, batch, max_len, reach, device=device, dtype=dtype)


def heads(dim: int, n_heads: int, n_kv_heads: int | None, head_dim: int | None) -> tuple[int, int, int]:
    """Return H, G and K, or say why they don't fit."""
    H, G = n_heads, n_kv_heads or n_heads
    if H % G:
        raise UserError(
            f"n_heads={H} can't share n_kv_heads={G} evenly: make n_heads a multiple of n_kv_heads."
        )
    if head_dim is None and dim % H:
        raise UserError(
            f"dim={dim} can't be cut into n_heads={H} heads: set head_dim, or make dim a multiple."
        )
    return H, G, head_dim or dim // H


def own_position(pos: Callable[[int], Position] | None, dim: int) -> Position | None:
    """Return an attention's own positions, if it has any; those that are added to the embedding can't be its own."""
    if pos is None:
        return None
    position = pos(dim)
    if type(position).embed is not Position.embed:
        name = type(position).__name__
        raise UserError(
            f"{name} positions are added to the embedding, so one attention can't have them for its own:"
            " choose them for the whole model, model/pos=<option>."
        )
    return position
