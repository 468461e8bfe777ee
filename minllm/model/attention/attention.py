"""Multi-head, grouped-query and multi-query attention: one class, three values of `n_kv_heads`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.attention.cache import Cache, cache
from minllm.model.attention.mask import Full
from minllm.model.context import Context, Layer, Position
from minllm.model.kernels import flex
from minllm.model.kernels.attention import attend
from minllm.model.parameter import Linear, SplitLinear, constant, parameter
from minllm.schema.options import BelowOne, Count, Positive

Weights = Literal["softmax", "sigmoid"]


class Attention(nn.Module):
    """Softmax attention (1706.03762) in which H query heads share G key/value heads.

    G = H is multi-head attention, G = 1 multi-query attention (1911.02150), anything between is grouped-query attention
    (2305.13245).

    Args:
        dim: width of the residual stream, D.
        layer: where this module is in the model.
        n_heads: query heads, H.
        n_kv_heads: key/value heads, G; null means H.
        head_dim: width of a head, K; null means D / H.
        mask: which of the keys allowed by causality and segments a query may see (`model/attn/mask`).
        pos: this module's own position encoding; null means the model's (`model/pos`).
        qk_norm: norm queries and keys, each head separately (2010.04245) or all heads together as in OLMo 2.
        scale: factor of the products of queries and keys; null means 1/√K.
        softcap, sinks, weights: see `Core`.
        output_gate: multiply each head's output by a sigmoid gate of the input (2505.06708).
        value_residual: from the second layer on, mix values with those of the first attention (2410.17897).
        qkv_bias: add a bias to queries, keys and values.
        out_bias: add a bias to the output.
        dropout: dropout probability of the attention weights.

    Raises:
        UserError: n_heads isn't a multiple of n_kv_heads, or D isn't a multiple of n_heads.
    """

    bidirectional = True

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
        # the first layer has no earlier values to mix in
        mixes = value_residual and layer.index > 0
        self.value_mix = parameter(2, kind="vector", draw=constant(0.5)) if mixes else None
        self.shares_values = value_residual
        self.core = Core(
            H, K, mask=mask, scale=scale, softcap=softcap, sinks=sinks, weights=weights, dropout=dropout
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
            (k_BGSK, v_BGSK), first, ctx = state.extend([k_BGSK, v_BGSK], ctx)
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
        """Mix a layer's values with those of the first attention; those of the first layer are unchanged."""
        first_BGTK = ctx.once("first values", lambda: v_BGTK)
        if first_BGTK.shape != v_BGTK.shape:
            raise UserError(
                f"value_residual mixes {v_BGTK.shape[1]} heads of width {v_BGTK.shape[3]} with the first attention's"
                f" {first_BGTK.shape[1]} of width {first_BGTK.shape[3]}: give all attentions the same n_kv_heads and"
                " head_dim, or remove value_residual."
            )
        if self.value_mix is None:
            return v_BGTK
        return self.value_mix[0] * v_BGTK + self.value_mix[1] * first_BGTK

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Cache:
        K, reach = self.head_dim, self.core.mask.reach
        return cache([K, K], self.n_kv_heads, batch, max_len, reach, device=device, dtype=dtype)


class Core(nn.Module):
    """Return the sum of the visible keys' values, weighted by the attention scores.

    Args:
        n_heads: query heads, H.
        query_width: width of queries and keys, K.
        n_maps: number of query heads per attention head; they share the position bias.
        mask: which keys a query may see (`model/attn/mask`).
        scale: factor of the products of queries and keys; None means 1/√K.
        softcap: limit the scores to c·tanh(score / c), as in Gemma 2 (2408.00118); None means no limit.
        sinks: add a learned score per head that takes weight but has no value, as in gpt-oss (2309.17453).
        weights: softmax, or sigmoid(score − ln(number of visible keys)) (2409.04431).
        dropout: dropout probability of the weights.
    """

    def __init__(
        self,
        n_heads: int,
        query_width: int,
        *,
        n_maps: int = 1,
        mask: Callable[[], Full],
        scale: Positive | None = None,
        softcap: Positive | None = None,
        sinks: bool = False,
        weights: Weights = "softmax",
        dropout: BelowOne = 0.0,
    ):
        super().__init__()
        if sinks and weights == "sigmoid":
            raise UserError(
                "Attention sinks only work with softmax weights, because sigmoids share none: remove sinks=true or"
                " weights=sigmoid."
            )
        self.n_heads, self.n_maps = n_heads // n_maps, n_maps
        self.mask, self.weights, self.dropout = mask(), weights, dropout
        self.query_width, self.scale, self.softcap = query_width, scale, softcap
        self.sinks_H = parameter(n_heads, kind="vector", draw=constant(0)) if sinks else None
        self.has_kernel = not sinks and weights == "softmax"
        self.is_plain = self.has_kernel and softcap is None

    def forward(
        self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, ctx: Context, position: Position, first: int = 0
    ) -> Tensor:
        """Return the weighted values, (B, H, T, width of a value); the keys are those of the tokens from `first` on."""
        dropout = self.dropout if self.training else 0.0
        bias_BHTS = position.bias(self.n_heads, ctx, first)
        if bias_BHTS is not None and self.n_maps > 1:
            bias_BHTS = bias_BHTS.repeat(1, self.n_maps, 1, 1)
        needs_tiles = self.softcap is not None or ctx.is_masked(self.mask, first)
        has_kernel = bias_BHTS is None and not dropout and self.has_kernel
        if needs_tiles and has_kernel and flex.applies(q_BHTK, k_BGSK, v_BGSK):
            return self._in_tiles(q_BHTK, k_BGSK, v_BGSK, ctx)
        if not self.is_plain:
            return self._by_scores(q_BHTK, k_BGSK, v_BGSK, bias_BHTS, ctx.visible(self.mask, first, True))
        seen = ctx.visible(self.mask, first, explicit=bias_BHTS is not None)
        if bias_BHTS is not None:
            key = ("bias", id(position), q_BHTK.shape[1], self.mask, first, q_BHTK.dtype)
            seen = ctx.once(key, lambda: bias_BHTS.to(q_BHTK.dtype).masked_fill(~seen, -torch.inf))
        return attend(q_BHTK, k_BGSK, v_BGSK, seen, causal=ctx.causal, scale=self.scale, dropout=dropout)

    def _in_tiles(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, ctx: Context) -> Tensor:
        mask, rows, T = self.mask, ctx.mask_rows(), q_BHTK.shape[2]
        tiles = None
        if ctx.causal or ctx.is_masked(mask):
            tiles = ctx.once(("tiles", mask), lambda: flex.tiles(ctx.sees(mask), rows, T, q_BHTK.device))
        return flex.attend_in_tiles(q_BHTK, k_BGSK, v_BGSK, tiles, scale=self.scale, softcap=self.softcap)

    def _by_scores(
        self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, bias_BHTS: Tensor | None, visible_BHTS: Tensor
    ) -> Tensor:
        """Compute the same with plain matrix products, for options without a fused kernel; needs B·H·T·S memory."""
        (B, H, T, K), G = q_BHTK.shape, k_BGSK.shape[1]
        q_BHTK = q_BHTK * (K**-0.5 if self.scale is None else self.scale)
        # the query heads of a group are stacked as more rows of one product
        scores_BHTS = (q_BHTK.reshape(B, G, -1, K) @ k_BGSK.mT).view(B, H, T, -1)
        if self.softcap is not None:
            scores_BHTS = self.softcap * torch.tanh(scores_BHTS / self.softcap)
        if bias_BHTS is not None:
            scores_BHTS = scores_BHTS + bias_BHTS
        scores_BHTS = scores_BHTS.masked_fill(~visible_BHTS, -torch.inf)
        p_BHTS = self._weights(scores_BHTS, visible_BHTS)
        if self.dropout:
            p_BHTS = F.dropout(p_BHTS, self.dropout, self.training)
        return (p_BHTS.reshape(B, G, -1, p_BHTS.shape[-1]).to(v_BGSK.dtype) @ v_BGSK).view(B, H, T, -1)

    def _weights(self, scores_BHTS: Tensor, visible_BHTS: Tensor) -> Tensor:
        if self.weights == "sigmoid":
            scores_BHTS = scores_BHTS - visible_BHTS.sum(-1, keepdim=True).log()
        if self.sinks_H is None:
            return scores_BHTS.softmax(-1) if self.weights == "softmax" else scores_BHTS.sigmoid()
        B, H, T, _ = scores_BHTS.shape
        sinks_BHT1 = self.sinks_H[:, None, None].expand(B, H, T, 1)
        return torch.cat([scores_BHTS, sinks_BHT1], dim=-1).softmax(-1)[..., :-1]


def heads(dim: int, n_heads: int, n_kv_heads: int | None, head_dim: int | None) -> tuple[int, int, int]:
    """Return H, G and K. Raises UserError if they don't divide evenly."""
    H, G = n_heads, n_kv_heads or n_heads
    if H % G:
        raise UserError(
            f"n_heads={H} isn't divisible by n_kv_heads={G}: make n_heads a multiple of n_kv_heads."
        )
    if head_dim is None and dim % H:
        raise UserError(
            f"dim={dim} can't be split into n_heads={H} heads: set head_dim, or make dim a multiple of n_heads."
        )
    return H, G, head_dim or dim // H


def own_position(pos: Callable[[int], Position] | None, dim: int) -> Position | None:
    """Return an attention module's own position encoding, if any. It can't be one that is added to the embedding."""
    if pos is None:
        return None
    position = pos(dim)
    if type(position).embed is not Position.embed:
        name = type(position).__name__
        raise UserError(
            f"{name} positions are added to the embedding, so they can't be set for one attention module:"
            " set them for the whole model with model/pos=<option>."
        )
    return position
