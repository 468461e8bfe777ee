"""Multi-head latent attention: keys and values are projections of one narrow vector per token, which is cached."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minllm.model.attention.attention import Core
from minllm.model.attention.cache import Cache, cache
from minllm.model.attention.mask import Full
from minllm.model.context import Context, Layer
from minllm.model.parameter import Linear, SplitLinear
from minllm.schema.options import BelowOne, Count, Positive


class LatentAttention(nn.Module):
    """Multi-head latent attention, MLA (DeepSeek-V2, 2405.04434).

        x ─┬─► latent c (C) ─ norm ─┬─► keys of each head (N)   ┐
           │                        └─► values of each head (V) ├► attention with N + R channels a head
           ├─► one rotated key for all heads (R)                │
           └─► (latent (Q) ─ norm ─►) queries (N + R)           ┘

    The cache holds c and the rotated key, C + R numbers per token. Decoding never computes the keys: each head's query
    is multiplied by the transposed key projection instead, and attends to the latents directly.

    Args:
        n_heads: H.
        latent_dim: width of the latent, C (kv_lora_rank).
        query_latent_dim: width of the queries' latent, Q (q_lora_rank); null projects queries from the input.
        head_dim: channels of a head without positions, N (qk_nope_head_dim).
        rope_dim: channels of a head that are rotated, R (qk_rope_head_dim).
        value_dim: width of a head's values, V; null means N.
        mask, dropout: see `minllm.model.attention.attention.Attention`.
        scale: factor of the products of queries and keys; null means 1/√(N + R).
    """

    bidirectional = True

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        n_heads: Count,
        latent_dim: Count,
        query_latent_dim: Count | None,
        head_dim: Count,
        rope_dim: Count,
        value_dim: Count | None,
        mask: Callable[[], Full],
        scale: Positive | None,
        dropout: BelowOne,
    ):
        super().__init__()
        H, N, R, V = n_heads, head_dim, rope_dim, value_dim or head_dim
        self.widths, self.latent_dim, self.n_heads, self.rotated_dim = (N, R, V), latent_dim, n_heads, R
        if query_latent_dim is not None:
            self.query_down = Linear(dim, query_latent_dim, stream="reads")
            self.query_norm = layer.norms.make(query_latent_dim)
            self.query_up = Linear(query_latent_dim, H * (N + R), stream="within")
        else:
            self.query_down = None
            self.query_up = Linear(dim, H * (N + R), stream="reads")
        self.down = SplitLinear(dim, [latent_dim, R], stream="reads")
        self.norm = layer.norms.make(latent_dim)
        self.up = Linear(latent_dim, H * (N + V), stream="within")
        self.core = Core(H, N + R, mask=mask, scale=scale or (N + R) ** -0.5, dropout=dropout)
        self.out = Linear(H * V, dim, stream="writes", gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Cache | None = None) -> Tensor:
        q_BHTN, q_BHTR = self._queries(x_BTD)
        c_BTC, k_BTR = self.down(x_BTD)
        c_B1TC, k_B1TR = self.norm(c_BTC)[:, None], ctx.position.rotate(k_BTR[:, None], ctx)
        q_BHTR = ctx.position.rotate(q_BHTR, ctx)
        attend = self._attend if state is None else self._attend_to_latents
        y_BHTV = attend(q_BHTN, q_BHTR, c_B1TC, k_B1TR, ctx, state)
        return self.out(y_BHTV.transpose(1, 2).flatten(2))

    def _queries(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        N, R, _ = self.widths
        if self.query_down is not None:
            x_BTD = self.query_norm(self.query_down(x_BTD))
        q_BHTK = self.query_up(x_BTD).unflatten(-1, (-1, N + R)).transpose(1, 2)
        return q_BHTK.split([N, R], dim=-1)

    def _attend(self, q_BHTN, q_BHTR, c_B1TC, k_B1TR, ctx: Context, state: None) -> Tensor:
        """Compute the keys and values of all heads: fewer operations if many queries share them."""
        N, _, V = self.widths
        k_BHTN, v_BHTV = self.up(c_B1TC[:, 0]).unflatten(-1, (-1, N + V)).transpose(1, 2).split([N, V], -1)
        k_BHTK = torch.cat([k_BHTN, k_B1TR.expand(*k_BHTN.shape[:-1], -1)], dim=-1)
        return self.core(torch.cat([q_BHTN, q_BHTR], -1), k_BHTK, v_BHTV, ctx, ctx.position)

    def _attend_to_latents(self, q_BHTN, q_BHTR, c_B1TC, k_B1TR, ctx: Context, state: Cache) -> Tensor:
        """Project queries to the latent space instead of keys to the heads: all heads share one key, as in MQA."""
        N, _, V = self.widths
        k_HNC, v_HVC = self.up.weight.view(self.n_heads, N + V, -1).split([N, V], dim=1)
        (c_B1SC, k_B1SR), first, ctx = state.extend([c_B1TC, k_B1TR], ctx)
        q_BHTK = torch.cat([q_BHTN @ k_HNC, q_BHTR], dim=-1)
        y_BHTC = self.core(q_BHTK, torch.cat([c_B1SC, k_B1SR], -1), c_B1SC, ctx, ctx.position, first)
        return y_BHTC @ v_HVC.mT

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Cache:
        widths = [self.latent_dim, self.widths[1]]
        return cache(widths, 1, batch, max_len, self.core.mask.reach, device=device, dtype=dtype)
