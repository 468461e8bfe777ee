"""Gated linear attention: linear attention with input-dependent decays (2312.06635)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Layer
from minllm.model.norm import RMSNorm
from minllm.model.parameter import Linear, SplitLinear
from minllm.model.precision import in_fp32
from minllm.model.recurrent.carry import Carry, recalled, remember
from minllm.model.scans.decaying import decaying_by_channel
from minllm.schema.options import Count, Positive


class GatedLinearAttention(nn.Module):
    """Linear attention with a separate decay for each key channel (GLA, 2312.06635).

        S_t = diag(a_t) S_(t-1) + k_t vᵀ_t        y_t = norm(Sᵀ_t q_t) ∘ silu(W x_t)        a_t = σ(U V x_t + b)^(1/16)

    Decays are clamped to at least exp(−5), which the 16th root of a sigmoid doesn't reach in practice.

    Args:
        n_heads: heads, H.
        head_dim: width of a head's queries and keys, K; null means D / 2H.
        value_dim: width of a head's values, V; null means D / H.
        gate_rank: width of the decays' bottleneck.
        gate_root: the decay is this root of the sigmoid; larger values mean a longer initial memory.

    Raises:
        UserError: D can't be split into the heads.
    """

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        n_heads: Count,
        head_dim: Count | None,
        value_dim: Count | None,
        gate_rank: Count,
        gate_root: Positive,
    ):
        super().__init__()
        H = self.n_heads = n_heads
        if (head_dim is None and dim % (2 * H)) or (value_dim is None and dim % H):
            raise UserError(
                f"dim={dim} can't be split into n_heads={H} heads, with dim / 2 for queries and dim for values:"
                " set head_dim and value_dim, or make dim a multiple of 2 n_heads."
            )
        K, V = self.head_dim, self.value_dim = head_dim or dim // (2 * H), value_dim or dim // H
        self.q_k_v = SplitLinear(dim, [H * K, H * K, H * V], stream="reads")
        self.decay_down = Linear(dim, gate_rank, stream="reads")
        self.decay_up = Linear(gate_rank, H * K, stream="within", bias=True)
        self.gate_root, self.query_width, self.scale = gate_root, K, K**-0.5
        self.gate = Linear(dim, H * V, stream="reads")
        self.norm = RMSNorm(V, eps=layer.norms.eps)
        self.out = Linear(H * V, dim, stream="writes", gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Carry | None = None) -> Tensor:
        decay = self.decay_up(self.decay_down(x_BTD))
        q_BTHK, k_BTHK, v_BTHV, decay_BTHK = (
            x.unflatten(-1, (self.n_heads, -1)) for x in (*self.q_k_v(x_BTD), decay)
        )
        hidden_BHKV, _ = recalled(state)
        y_BTHV, hidden_BHKV = decaying_by_channel(
            q_BTHK * self.scale,
            k_BTHK,
            v_BTHV,
            in_fp32(F.logsigmoid, decay_BTHK) / self.gate_root,
            hidden_BHKV,
            ctx.starts(),
        )
        remember(state, hidden_BHKV)
        gate = self.gate(x_BTD)
        return self.out(self.norm(y_BTHV.float()).flatten(2) * F.silu(gate))

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Carry:
        return Carry(torch.zeros(batch, self.n_heads, self.head_dim, self.value_dim, device=device))
