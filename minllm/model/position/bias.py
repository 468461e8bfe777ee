"""Position encodings that are added to attention scores."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Position
from minllm.model.parameter import normal, parameter
from minllm.schema.options import Count


class Alibi(Position):
    """Scores decrease linearly with distance, with a different slope in each head (2108.12409).

    In an encoder they decrease in both directions.
    """

    def bias(self, n_heads: int, ctx: Context, first: int) -> Tensor:
        return ctx.once(("alibi", n_heads, first), lambda: self._bias(n_heads, ctx, first))

    def _bias(self, n_heads: int, ctx: Context, first: int) -> Tensor:
        device = ctx.positions_BT.device
        # filled in on the device: copying them there would wait for it
        slopes_H = torch.stack([torch.full((), slope, device=device) for slope in _slopes(n_heads)])
        return -slopes_H[:, None, None] * _distances(ctx, first).abs()[:, None]


class T5(Position):
    """A learned score for each head and each bucket of distances, the same in all layers (1910.10683).

    The first half of the buckets are single distances; the others grow with the distance, up to `max_distance`. In an
    encoder half of the buckets are for earlier keys, and half for later ones.
    """

    def __init__(self, dim: int, *, n_heads: Count, n_buckets: Count, max_distance: Count):
        super().__init__(dim)
        if n_buckets % 2 or max_distance <= n_buckets // 2:
            raise UserError(
                f"model.pos.n_buckets={n_buckets} must be even, and half of it less than"
                f" model.pos.max_distance={max_distance}."
            )
        self.n_heads, self.n_buckets, self.max_distance = n_heads, n_buckets, max_distance
        self.weight_UH = parameter(n_buckets, n_heads, kind="vector", draw=normal(0.02))

    def check(self, model: nn.Module) -> None:
        readers = self.readers(model)
        for reader in readers:
            if reader.core.n_heads != self.n_heads:
                raise UserError(
                    f"model.pos has scores for {self.n_heads} heads, but an attention has {reader.core.n_heads}: set"
                    f" model.pos.n_heads={reader.core.n_heads}, or give all attentions the same number of heads."
                )
        if not readers:
            raise UserError(
                "model/pos=t5 learns scores for self-attention, but model.layout has none: choose another model/pos,"
                " such as none."
            )

    def bias(self, n_heads: int, ctx: Context, first: int) -> Tensor:
        return ctx.once((id(self), first), lambda: self._bias(ctx, first))

    def _bias(self, ctx: Context, first: int) -> Tensor:
        back_BTS = _distances(ctx, first)
        if ctx.causal:
            bucket_BTS = self._buckets(back_BTS.clamp(min=0), self.n_buckets)
        else:
            half = self.n_buckets // 2
            bucket_BTS = self._buckets(back_BTS.abs(), half) + torch.where(back_BTS < 0, half, 0)
        return F.embedding(bucket_BTS, self.weight_UH).permute(0, 3, 1, 2)

    def _buckets(self, distance_BTS: Tensor, n_buckets: int) -> Tensor:
        exact = n_buckets // 2
        far_BTS = (distance_BTS.clamp(min=1) / exact).log() / math.log(self.max_distance / exact)
        bucket_BTS = (exact + (far_BTS * (n_buckets - exact)).long()).clamp(max=n_buckets - 1)
        return torch.where(distance_BTS < exact, distance_BTS, bucket_BTS)


def _distances(ctx: Context, first: int) -> Tensor:
    """Return the distance of each key from `first` on to each query, (B or 1, T, S)."""
    return ctx.positions_BT[:, :, None] - ctx.positions_BS[:, None, first:]


def _slopes(n_heads: int) -> list[float]:
    """Return ALiBi's slopes: 2^(-8i/H) for a power of two, else with every second slope of the next power added."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-4 * i / power) for i in range(1, 2 * power + 1, 2)]
    return slopes + between[: n_heads - power]
