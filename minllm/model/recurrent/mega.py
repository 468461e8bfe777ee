"""Megalodon's mixer: a moving average followed by attention within chunks (2404.08801)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.attention.attention import Core, own_position
from minllm.model.attention.cache import Cache, cache
from minllm.model.attention.mask import Blocks
from minllm.model.context import PAD, Context, Layer, Position
from minllm.model.norm import RMSNorm
from minllm.model.parameter import Draw, Linear, SplitLinear, constant, normal, parameter
from minllm.model.precision import in_fp32
from minllm.model.recurrent.timestep_norm import Statistics, TimestepNorm
from minllm.model.scans.moving_average import moving_average
from minllm.schema.options import BelowOne, Count

NOBODY = PAD - 1
"""The segment of keys before a row's first token."""


class Mega(nn.Module):
    """Megalodon's moving average gated attention (2404.08801), after Mega (2209.10655).

        x ─ TimestepNorm ─┬─► silu(linear) ─► v ───────────────┐
                          └─► average ─ norm ─┬─► z ─► q, k ───┴─► attention ─┐
                                              ├─► silu(linear) ───────────────∘──► linear ─┐
                                              └─► linear ─────────────────────────────────(+)──► y

    The average has N complex numbers per channel, each of which decays and rotates from token to token:

        h_t = q h_(t-1) + p x_t     y_t = Re(Σ_n γ_n h_tn) / √N + ω x_t     p = α     q = (1 − α δ) exp(2πi n f / N)

    Queries and keys are one projection with two gains and two biases. A token attends to the tokens of its own chunk
    up to itself; chunks are aligned to the beginning of its segment.

    Args:
        n_heads: heads, H.
        head_dim: width of a head's queries and keys, K; null means D / 4H.
        value_dim: width of a head's values; null means 2D / H.
        n_state: complex numbers of each channel's average, N.
        n_groups: groups of channels over which the norm computes statistics.
        chunk: number of tokens that attend to each other.
        pos: this module's own position encoding; null means the model's (`model/pos`).
        dropout: dropout probability of the attention weights.

    Raises:
        UserError: D can't be split into the heads.
    """

    norms_its_input = True
    untransferable = (
        "its scores are products of normed vectors and products of biases, which grow differently"
    )

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        n_heads: Count,
        head_dim: Count | None,
        value_dim: Count | None,
        n_state: Count,
        n_groups: Count,
        chunk: Count,
        pos: Callable[[int], Position] | None,
        dropout: BelowOne,
    ):
        super().__init__()
        H = n_heads
        if head_dim is None and dim % (4 * H) or value_dim is None and 2 * dim % H:
            raise UserError(
                f"dim={dim} can't be split into n_heads={H} heads, with dim / 4 for queries and 2 dim for values:"
                " set head_dim and value_dim, or make dim a multiple of 4 n_heads."
            )
        K, V, N = head_dim or dim // (4 * H), value_dim or 2 * dim // H, n_state
        self.head_dim, self.value_dim, self.rotated_dim, self.eps = K, V, K, layer.norms.eps
        self.position = own_position(pos, dim)
        self.norm = TimestepNorm(dim, n_groups, eps=self.eps)
        self.alpha_DN = parameter(dim, N, kind="vector", draw=normal(0.2))
        self.delta_DN = parameter(dim, N, kind="vector", draw=normal(0.2))
        self.theta_D = parameter(dim, kind="vector", draw=_frequencies)
        self.gamma_DN2 = parameter(dim, N, 2, kind="vector", draw=_real_normal)
        self.omega_D = parameter(dim, kind="vector", draw=_cut_normal(0.25, 1.0))
        self.average_norm = RMSNorm(dim, eps=self.eps)
        self.value = Linear(dim, H * V, stream="reads", bias=True)
        self.z_gate = SplitLinear(dim, [H * K, H * V], stream="reads", bias=True)
        # of queries and of keys
        self.gains_2HK = parameter(2, H * K, kind="vector", draw=constant(0))
        self.biases_2HK = parameter(2, H * K, kind="vector", draw=constant(0))
        mask = functools.partial(Blocks, size=chunk, n_global=0)
        self.core = Core(H, K, mask=mask, scale=1.0, dropout=dropout)
        # the sum of the two has the scale of one
        gain = (2 * layer.branches) ** -0.5
        self.skip = Linear(dim, dim, stream="writes", bias=True, gain=gain)
        self.out = Linear(H * V, dim, stream="writes", gain=gain)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Memory | None = None) -> Tensor:
        x_BTD = self.norm(x_BTD, ctx, None if state is None else state.statistics)
        h0_BDN2 = None if state is None else state.hidden_BDN2
        y_BTD, h_BDN2 = in_fp32(functools.partial(self._average, ctx.starts()), x_BTD, h0_BDN2)
        if state is not None:
            state.hidden_BDN2.copy_(h_BDN2)
        y_BTD = self.average_norm(y_BTD)
        z, gate = self.z_gate(y_BTD)
        attended = self._attend(z, F.silu(self.value(x_BTD)), ctx, state)
        return self.skip(y_BTD) + self.out(attended * F.silu(gate))

    def _average(
        self, starts_BT: Tensor | None, x_BTD: Tensor, h0_BDN2: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        N = self.alpha_DN.shape[1]
        alpha_DN, delta_DN = torch.sigmoid(self.alpha_DN), torch.sigmoid(self.delta_DN)
        # bounded, because the logarithm of 0 is infinite
        log_r_DN = torch.log1p(-(alpha_DN * delta_DN).clamp(max=1 - 1e-6))
        turns_N = torch.arange(1, N + 1, device=x_BTD.device) * (2 * math.pi / N)
        angle_DN = torch.sigmoid(self.theta_D)[:, None] * turns_N
        gamma_DN2 = self.gamma_DN2 * N**-0.5
        return moving_average(
            x_BTD, log_r_DN, angle_DN, alpha_DN, gamma_DN2, self.omega_D, starts_BT, h0_BDN2
        )

    def _attend(self, z: Tensor, v: Tensor, ctx: Context, state: Memory | None) -> Tensor:
        """Return the concatenated outputs of the heads, (B, T, H · width of a value)."""
        position, K = self.position or ctx.position, self.head_dim
        z_BTHK = F.rms_norm(z.unflatten(-1, (-1, K)), (K,), eps=self.eps)
        gains_2HK = ((self.gains_2HK + 1) * K**-0.5).unflatten(-1, (-1, K))
        biases_2HK = self.biases_2HK.unflatten(-1, (-1, K))
        q_BHTK, k_BHSK = (
            position.rotate(torch.addcmul(bias_HK, z_BTHK, gain_HK).transpose(1, 2), ctx)
            for bias_HK, gain_HK in zip(biases_2HK, gains_2HK)
        )
        v_BHSK = v.unflatten(-1, (-1, self.value_dim)).transpose(1, 2)
        new, first = [k_BHSK, v_BHSK], 0
        seen = new
        if state is not None:
            seen, first, ctx = state.cache.extend(new, ctx)
        if ctx.past == 0 and z.shape[1] > self.core.mask.size:
            y_BHTK = self._in_chunks(q_BHTK, *new, ctx, position)
        else:
            y_BHTK = self.core(q_BHTK, *seen, ctx, position, first)
        return y_BHTK.transpose(1, 2).flatten(2)

    def _in_chunks(
        self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, ctx: Context, position: Position
    ) -> Tensor:
        """The same at a cost linear in T: attention treats each chunk as a separate row.

        A document in a packed row may begin anywhere, so its chunks may span two of the row's. Each of these therefore
        attends to the keys of the previous one too, and the mask hides keys outside a token's own chunk.
        """
        (B, _, T, _), L = q_BHTK.shape, self.core.mask.size
        of_chunks = ctx.once(("chunks", L), lambda: _of_chunks(ctx, L))
        q, k, v = (_folded(x.transpose(1, 2), L) for x in (q_BHTK, k_BHTK, v_BHTK))
        if of_chunks.past:
            k, v = (torch.cat([_one_later(x), x], dim=2) for x in (k, v))
        q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))
        y_BCHLK = self.core(q, k, v, of_chunks, position).unflatten(0, (B, -1))
        return y_BCHLK.transpose(1, 2).flatten(2, 3)[:, :, :T]

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Memory:
        hidden_BDN2 = torch.zeros(batch, *self.alpha_DN.shape, 2, device=device)
        widths, reach = [self.head_dim, self.value_dim], self.core.mask.reach
        return Memory(
            self.norm.init_state(batch, device=device),
            hidden_BDN2,
            cache(widths, self.core.n_heads, batch, max_len, reach, device=device, dtype=dtype),
        )


@dataclass
class Memory:
    """The states of the norm, the average and attention, whose size is bounded by one chunk."""

    statistics: Statistics
    hidden_BDN2: Tensor
    cache: Cache

    def tensors(self) -> list[Tensor]:
        return [*self.statistics.tensors(), self.hidden_BDN2, *self.cache.tensors()]


def _of_chunks(ctx: Context, L: int) -> Context:
    """Return the context of a pass in which each chunk of L tokens is a row of its own, preceded by the last one."""
    if ctx.segments_BT is None:
        # all chunks are alike, and none sees another
        positions_1L = torch.arange(L, device=ctx.positions_BT.device)[None]
        return Context(positions_1L, positions_1L, ctx.position, causal=ctx.causal)
    positions, segments = _folded(ctx.positions_BT, L), _folded(ctx.segments_BT, L, PAD)
    seen = [torch.cat([_one_later(x, NOBODY), x], dim=2).flatten(0, 1) for x in (positions, segments)]
    positions_NL, segments_NL = positions.flatten(0, 1), segments.flatten(0, 1)
    return Context(positions_NL, seen[0], ctx.position, segments_NL, seen[1], past=L, causal=ctx.causal)


def _folded(x_BT: Tensor, L: int, fill: int = 0) -> Tensor:
    """Return x, (B, T, …), as (B, chunks, L, …); the last chunk is padded."""
    missing = -x_BT.shape[1] % L
    if missing:
        x_BT = F.pad(x_BT, (0, 0) * (x_BT.ndim - 2) + (0, missing), value=fill)
    return x_BT.unflatten(1, (-1, L))


def _one_later(x_BCL: Tensor, fill: int = 0) -> Tensor:
    """Return the chunk before each chunk; before the first one it is `fill`."""
    return torch.cat([torch.full_like(x_BCL[:, :1], fill), x_BCL[:, :-1]], dim=1)


def _frequencies(value: Tensor, generator: torch.Generator) -> None:
    """Draw the logits of the frequencies D^(-i/D), i = 1 … D, in a random order."""
    D = len(value)
    place_D = torch.randperm(D, generator=generator) + 1
    value.copy_(torch.exp(-place_D * math.log(D) / D).logit())


def _real_normal(value: Tensor, generator: torch.Generator) -> None:
    value.zero_()[..., 0].normal_(generator=generator)


def _cut_normal(std: float, limit: float) -> Draw:
    return lambda value, generator: nn.init.trunc_normal_(value, 0, std, -limit, limit, generator)
