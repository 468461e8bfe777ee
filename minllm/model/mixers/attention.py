"""Multi-head, grouped-query and multi-query attention: one class, three values of `n_kv_heads`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Layer
from minllm.model.mixers.softmax import attend
from minllm.model.parameter import Linear, SplitLinear
from minllm.options import Count, Fraction


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
        qkv_bias: bool,
        out_bias: bool,
        dropout: Fraction,
    ):
        super().__init__()
        H, G = n_heads, n_kv_heads or n_heads
        if H % G:
            raise UserError(
                f"n_heads={H} can't share n_kv_heads={G} evenly: make n_heads a multiple of n_kv_heads."
            )
        if head_dim is None and dim % H:
            raise UserError(
                f"dim={dim} can't be cut into n_heads={H} heads: set head_dim, or make dim a multiple."
            )
        K = head_dim or dim // H
        self.n_heads, self.n_kv_heads, self.head_dim, self.dropout = H, G, K, dropout
        self.qkv = SplitLinear(dim, [H * K, G * K, G * K], stream="reads", bias=qkv_bias)
        self.out = Linear(H * K, dim, stream="writes", bias=out_bias, gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: KVCache | None = None) -> Tensor:
        q_BHTK, k_BGTK, v_BGTK = (
            flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for flat in self.qkv(x_BTD)
        )
        q_BHTK = ctx.position.rotate(q_BHTK, ctx)
        k_BGSK = ctx.position.rotate(k_BGTK, ctx)
        v_BGSK = v_BGTK
        if state is not None:
            k_BGSK, v_BGSK = state.extend(k_BGSK, v_BGSK, ctx.past)
        dropout = self.dropout if self.training else 0.0
        y_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, ctx.visible(), causal=ctx.causal, dropout=dropout)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> KVCache:
        shape = (batch, self.n_kv_heads, max_len, self.head_dim)
        return KVCache(
            torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
        )


@dataclass
class KVCache:
    """The keys and values of all tokens so far, in place for `max_len` of them."""

    k_BGSK: Tensor
    v_BGSK: Tensor

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor, past: int) -> tuple[Tensor, Tensor]:
        """Write T new tokens behind the `past` ones; return the keys and values of all of them."""
        end = past + k_BGTK.shape[2]
        self.k_BGSK[:, :, past:end] = k_BGTK
        self.v_BGSK[:, :, past:end] = v_BGTK
        return self.k_BGSK[:, :, :end], self.v_BGSK[:, :, :end]

    def tensors(self) -> list[Tensor]:
        return [self.k_BGSK, self.v_BGSK]
