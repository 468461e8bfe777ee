"""How a model knows where its tokens stand: at the embedding, in queries and keys, or in attention's scores."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context
from minllm.model.parameter import normal, parameter
from minllm.schema.options import Count, Positive


class Position(nn.Module):
    """No positions at all (NoPE, 2305.19466), and what other kinds inherit from.

    Positions enter at the embedding (`embed`), at attention's queries and keys (`rotate`), or at its scores (`bias`).
    """

    places: int | None = None
    """How many places there are; None where there is no end of them."""

    def __init__(self, dim: int):
        super().__init__()

    def check(self, model: nn.Module) -> None:
        """Raise `UserError` if these positions can do nothing in the model that has them."""

    def readers(self, model: nn.Module) -> list[nn.Module]:
        """Return the attentions that have these positions: their own, or the model's where they have none."""
        own = None if model.position is self else self
        attentions = [module for module in model.modules() if hasattr(module, "rotated_dim")]
        return [one for one in attentions if getattr(one, "position", None) is own]

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return x_BTD

    def rotate(self, x_BHTK: Tensor, ctx: Context) -> Tensor:
        return x_BHTK

    def bias(self, n_heads: int, ctx: Context, first: int) -> Tensor | None:
        """Return what is added to the scores of the keys from `first` on, (B or 1, H, T, S)."""
        return None


class Learned(Position):
    """One learned vector a place, added to the embedding (GPT-2). There are none beyond `max_len` places."""

    def __init__(self, dim: int, *, max_len: Count):
        super().__init__(dim)
        self.places = max_len
        self.weight = parameter(max_len, dim, kind="embedding", draw=normal(0.02), stream="writes")

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        longest = ctx.past + x_BTD.shape[1]
        if longest > self.places and ctx.segments_BT is not None and not x_BTD.is_meta:
            longest = int(ctx.positions_BT.max()) + 1  # places start anew in each segment
        if longest > self.places:
            raise UserError(
                f"model.pos has learned {self.places} places and is shown {longest}: raise model.pos.max_len, or"
                " shorten the text."
            )
        return x_BTD + F.embedding(ctx.positions_BT, self.weight)


class Sinusoidal(Position):
    """Fixed sines and cosines of D/2 wavelengths, added to the embedding (1706.03762).

    Args:
        theta: the longest wavelength is just under 2π times this.
        amplitude: of the waves; embedded tokens begin at a size of 0.02.
    """

    def __init__(self, dim: int, *, theta: Positive, amplitude: Positive):
        super().__init__(dim)
        if dim % 2:
            raise UserError(f"Sines and cosines come in pairs, and model.dim={dim} is odd: make it even.")
        self.theta, self.amplitude = theta, amplitude

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        D = x_BTD.shape[-1]
        rates_D = self.theta ** -(torch.arange(0, D, 2, device=x_BTD.device) / D)
        angles_BTD = ctx.positions_BT[..., None] * rates_D
        waves_BTD = torch.stack([angles_BTD.sin(), angles_BTD.cos()], dim=-1).flatten(-2)
        return x_BTD + self.amplitude * waves_BTD.to(x_BTD.dtype)


class Alibi(Position):
    """Scores fall in proportion to distance, in each head at a slope of its own (2108.12409)."""

    def bias(self, n_heads: int, ctx: Context, first: int) -> Tensor:
        return ctx.once(("alibi", n_heads, first), lambda: self._bias(n_heads, ctx, first))

    def _bias(self, n_heads: int, ctx: Context, first: int) -> Tensor:
        slopes_H11 = torch.tensor(_slopes(n_heads), device=ctx.positions_BT.device)[:, None, None]
        return -slopes_H11 * _distances(ctx, first)[:, None]


class T5(Position):
    """A learned score for each head and each bucket of distances, the same in all layers (1910.10683).

    The first half of the buckets are single distances; the others grow with the distance, up to `max_distance`.
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
                    f"model.pos has scores for {self.n_heads} heads, and an attention has {reader.core.n_heads}: set"
                    f" model.pos.n_heads={reader.core.n_heads}, or make all attentions alike."
                )
        if not readers:
            raise UserError(
                "model/pos=t5 learns scores for attention, and no branch of model.layout is an attention to its own"
                " past: choose another model/pos, such as none."
            )

    def bias(self, n_heads: int, ctx: Context, first: int) -> Tensor:
        return ctx.once((id(self), first), lambda: self._bias(ctx, first))

    def _bias(self, ctx: Context, first: int) -> Tensor:
        distance_BTS, exact = _distances(ctx, first).clamp(min=0), self.n_buckets // 2
        far_BTS = (distance_BTS.clamp(min=1) / exact).log() / math.log(self.max_distance / exact)
        bucket_BTS = (exact + (far_BTS * exact).long()).clamp(max=self.n_buckets - 1)
        bucket_BTS = torch.where(distance_BTS < exact, distance_BTS, bucket_BTS)
        return F.embedding(bucket_BTS, self.weight_UH).permute(0, 3, 1, 2)


def _distances(ctx: Context, first: int) -> Tensor:
    """Return how far each key from `first` on lies behind each query, (B or 1, T, S)."""
    return ctx.positions_BT[:, :, None] - ctx.positions_BS[:, None, first:]


def _slopes(n_heads: int) -> list[float]:
    """Return ALiBi's slopes: 2^(-8i/H) for a power of two; other numbers take every second of the next power's too."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-4 * i / power) for i in range(1, 2 * power + 1, 2)]
    return slopes + between[: n_heads - power]
