"""Cross-attention: tokens attend to a memory instead of their own past."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minllm.model.attention.attention import heads
from minllm.model.context import Context, Layer
from minllm.model.kernels.attention import attend
from minllm.model.parameter import Linear, SplitLinear
from minllm.schema.options import BelowOne, Count, Positive


class CrossAttention(nn.Module):
    """Queries from the stream, keys and values from the memory (1706.03762), without position encoding.

    The memory is an argument of the forward pass, `model(tokens, memory_BSD=…)`, or the output of the model's encoder
    for another text, `model(tokens, source_BS=…)`.

    Args:
        n_heads, n_kv_heads, head_dim, qkv_bias, out_bias, dropout, scale: see
            `minllm.model.attention.attention.Attention`.
    """

    reads_memory = True

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
        dropout: BelowOne,
        scale: Positive | None = None,
    ):
        super().__init__()
        H, G, K = heads(dim, n_heads, n_kv_heads, head_dim)
        self.head_dim, self.query_width, self.dropout, self.scale = K, K, dropout, scale
        self.q = Linear(dim, H * K, stream="reads", bias=qkv_bias)
        self.kv = SplitLinear(dim, [G * K, G * K], stream="within", bias=qkv_bias)
        self.out = Linear(H * K, dim, stream="writes", bias=out_bias, gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: MemoryCache | None = None) -> Tensor:
        q_BHTK = self._in_heads(self.q(x_BTD))
        if state is None:
            k_BGSK, v_BGSK = self._keys_and_values(ctx)
        else:
            state.held = state.held or self._keys_and_values(ctx)
            k_BGSK, v_BGSK = state.held
        dropout = self.dropout if self.training else 0.0
        y_BHTK = attend(
            q_BHTK, k_BGSK, v_BGSK, ctx.memory_visible(), causal=False, scale=self.scale, dropout=dropout
        )
        return self.out(y_BHTK.transpose(1, 2).flatten(2))

    def _keys_and_values(self, ctx: Context) -> list[Tensor]:
        return [self._in_heads(x) for x in self.kv(ctx.memory_BSD)]

    def _in_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def init_state(
        self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype
    ) -> MemoryCache:
        return MemoryCache()


@dataclass
class MemoryCache:
    """The memory's keys and values, computed in the first pass."""

    held: list[Tensor] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        return self.held
