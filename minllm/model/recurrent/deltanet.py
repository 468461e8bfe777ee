"""DeltaNet: linear attention that overwrites the value stored for a key; and Gated DeltaNet, with a forget gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Layer
from minllm.model.norm import RMSNorm
from minllm.model.parameter import Linear, log_between, parameter, steps_between
from minllm.model.precision import in_fp32
from minllm.model.recurrent.carry import Carry, recalled, remember
from minllm.model.recurrent.conv import CausalConv
from minllm.model.scans.delta import delta_rule
from minllm.schema.options import Count


class DeltaNet(nn.Module):
    """Linear attention with the delta rule (2102.11174), as in "Parallelizing Linear Transformers" (2406.06484).

        S_t = (1 − β_t k_t kᵀ_t) S_(t-1) + β_t k_t vᵀ_t        y_t = norm(Sᵀ_t q_t)        β = σ(W x)

    With β from 0 to 1, the eigenvalues of what multiplies the state are from 0 to 1. With β = 2 σ(W x) they are from −1
    to 1, so that a token can flip or swap what is stored, which state tracking needs (2411.12537).

    Queries, keys and values pass through a short convolution and a silu; queries and keys are then L2-normalised.

    Args:
        n_heads: query/key heads, G.
        n_value_heads: value heads, H; H / G of them share a query/key head; null means G.
        head_dim: width of a head's queries and keys, K.
        value_dim: width of a head's values, V; null means K.
        conv_width: how many tokens the convolution sees.
        chunk: tokens that are computed at once; affects speed and memory, but not results.
        negative_eigenvalues: β goes up to 2 instead of 1.

    Raises:
        UserError: n_value_heads isn't a multiple of n_heads.
    """

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        n_heads: Count,
        n_value_heads: Count | None,
        head_dim: Count,
        value_dim: Count | None,
        conv_width: Count,
        chunk: Count,
        negative_eigenvalues: bool = False,  # older runs don't have it
    ):
        super().__init__()
        G, H = n_heads, n_value_heads or n_heads
        if H % G:
            raise UserError(
                f"n_value_heads={H} isn't divisible by n_heads={G}: make n_value_heads a multiple of n_heads."
            )
        self.n_heads, self.n_value_heads, self.chunk = G, H, chunk
        self.largest_beta = 2.0 if negative_eigenvalues else 1.0
        K, V = self.head_dim, self.value_dim = head_dim, value_dim or head_dim
        self.sizes = [G * K, G * K, H * V]
        self.q_k_v = Linear(dim, sum(self.sizes), stream="reads", parts=self.sizes)
        self.conv = CausalConv(sum(self.sizes), conv_width)
        self.beta = Linear(dim, H, stream="reads")
        self.norm = RMSNorm(V, eps=layer.norms.eps)
        self.out = Linear(H * V, dim, stream="writes", gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Carry | None = None) -> Tensor:
        hidden_BHKV, tail = recalled(state)
        q_k_v = F.silu(self.conv(self.q_k_v(x_BTD), ctx, tail))
        q, k, v = q_k_v.split(self.sizes, dim=-1)
        q_BTGK, k_BTGK = (x.unflatten(-1, (self.n_heads, -1)) for x in (q, k))
        v_BTHV = v.unflatten(-1, (self.n_value_heads, -1))
        shared = self.n_value_heads // self.n_heads
        q_BTHK, k_BTHK = (of_length_1(x).repeat_interleave(shared, dim=2) for x in (q_BTGK, k_BTGK))
        y_BTHV, hidden_BHKV = delta_rule(
            q_BTHK * self.head_dim**-0.5,
            k_BTHK,
            v_BTHV,
            self.largest_beta * self.beta(x_BTD).sigmoid(),
            self._log_decay(x_BTD),
            hidden_BHKV,
            ctx.starts(),
            chunk=self.chunk,
        )
        remember(state, hidden_BHKV)
        return self.out(self._gated(self.norm(y_BTHV.float()).flatten(2), x_BTD))

    def _log_decay(self, x_BTD: Tensor) -> Tensor | None:
        return None

    def _gated(self, y_BTF: Tensor, x_BTD: Tensor) -> Tensor:
        return y_BTF

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Carry:
        shape = batch, self.n_value_heads, self.head_dim, self.value_dim
        return Carry(
            torch.zeros(shape, device=device), self.conv.init_state(batch, device=device, dtype=dtype)
        )


class GatedDeltaNet(DeltaNet):
    """DeltaNet with a state that decays as in Mamba-2 and a gated output (2412.06464), as in Qwen3-Next.

        S_t = a_t (1 − β_t k_t kᵀ_t) S_(t-1) + β_t k_t vᵀ_t        y_t = norm(Sᵀ_t q_t) ∘ silu(W x)
        a_t = exp(−A softplus(w · x_t + b))

    Args:
        options: see `DeltaNet`.
    """

    def __init__(self, dim: int, layer: Layer, **options):
        super().__init__(dim, layer, **options)
        H = self.n_value_heads
        self.decay = Linear(dim, H, stream="reads")
        self.decay_bias_H = parameter(H, kind="vector", draw=steps_between(0.001, 0.1))
        self.log_A_H = parameter(H, kind="vector", draw=log_between(0.01, 16))
        self.gate = Linear(dim, H * self.value_dim, stream="reads")

    def _log_decay(self, x_BTD: Tensor) -> Tensor:
        return in_fp32(lambda x: -self.log_A_H.exp() * F.softplus(x + self.decay_bias_H), self.decay(x_BTD))

    def _gated(self, y_BTF: Tensor, x_BTD: Tensor) -> Tensor:
        return y_BTF * F.silu(self.gate(x_BTD))


def of_length_1(x: Tensor) -> Tensor:
    """Divide by the L2 norm, in fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
