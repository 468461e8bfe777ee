"""Rotary position embedding, and its extensions to longer texts than a model was trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Position
from minllm.schema.options import Count, Fraction, Positive


class Rope(Position):
    """Rotary embedding (2104.09864): pair i of a head's R rotated channels is rotated by t / θ^(2i/R) at position t.

    Args:
        theta: θ, the base of the wavelengths.
        fraction: fraction of a head's channels that are rotated, the first ones.
        interleaved: pairs are neighbours, as in GPT-J; else channel i is paired with channel i + R/2, as in Llama.
    """

    magnitude = 1.0
    """Factor of rotated queries and keys."""

    def __init__(self, dim: int, *, theta: Positive, fraction: Fraction, interleaved: bool):
        super().__init__(dim)
        self.theta, self.fraction, self.interleaved = theta, fraction, interleaved
        self.key = (type(self), theta, fraction, interleaved)
        """Identifies the rotation: attentions with equal settings share the sines and cosines."""

    def check(self, model: nn.Module) -> None:
        for reader in self.readers(model):
            self._turning(reader.rotated_dim)

    def rates(self, R: int, device: torch.device) -> Tensor:
        """Return the angle of each pair from one position to the next, in radians, (R/2,)."""
        return self.theta ** -(torch.arange(0, R, 2, device=device) / R)

    def rotate(self, x_BHTK: Tensor, ctx: Context) -> Tensor:
        K = x_BHTK.shape[-1]
        key = (self.key, K, x_BHTK.dtype)
        cos_B1TR, sin_B1TR = ctx.once(key, lambda: self._turns(ctx.positions_BT, K, x_BHTK.dtype))
        R = cos_B1TR.shape[-1]
        x_BHTR, still = (x_BHTK, None) if R == K else x_BHTK.split([R, K - R], dim=-1)
        if self.interleaved:
            swapped = x_BHTR.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            a, b = x_BHTR.chunk(2, dim=-1)
            swapped = torch.cat([b, a], dim=-1)
        turned = torch.addcmul(x_BHTR * cos_B1TR, swapped, sin_B1TR)
        return turned if still is None else torch.cat([turned, still], dim=-1)

    def _turns(self, positions_BT: Tensor, K: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        R = self._turning(K)
        angles_BTR = positions_BT[..., None] * self.rates(R, positions_BT.device)
        cos, sin = angles_BTR.cos().to(dtype), angles_BTR.sin().to(dtype)
        if self.magnitude != 1:
            cos, sin = self.magnitude * cos, self.magnitude * sin
        # (a, b) -> (a cos - b sin, b cos + a sin): the pair swapped, b meets -sin and a meets +sin. In one cat, since
        # compiled code keeps its result; the cosines by themselves would be computed again in each layer's backward
        if self.interleaved:
            both = torch.stack([torch.stack([cos, cos], -1), torch.stack([-sin, sin], -1)]).flatten(-2)
            return both[0][:, None], both[1][:, None]
        return torch.cat([cos, cos, -sin, sin], -1)[:, None].chunk(2, -1)

    def _turning(self, K: int) -> int:
        """Return how many of a head's K channels are rotated, R."""
        R = round(K * self.fraction)
        if R % 2 or R == 0:
            share = "" if self.fraction == 1 else f"{self.fraction:g} of "
            raise UserError(
                f"RoPE rotates channels in pairs, but {share}a head width of {K} is {R}: set an even head_dim"
                f"{', or another fraction' if share else ''}."
            )
        return R


class Linear(Rope):
    """Position interpolation (2306.15595): all positions are divided by `factor`."""

    def __init__(self, dim: int, *, theta: Positive, fraction: Fraction, interleaved: bool, factor: Positive):
        super().__init__(dim, theta=theta, fraction=fraction, interleaved=interleaved)
        self.factor = factor
        self.key += (factor,)

    def rates(self, R: int, device: torch.device) -> Tensor:
        return super().rates(R, device) / self.factor


class NTK(Linear):
    """NTK-aware interpolation (2309.00071, section 3.1): θ grows so that the slowest pair is `factor` times slower."""

    def rates(self, R: int, device: torch.device) -> Tensor:
        if R == 2:
            raise UserError("NTK scaling needs more than one pair of channels: set a larger head_dim.")
        theta = self.theta * self.factor ** (R / (R - 2))
        return theta ** -(torch.arange(0, R, 2, device=device) / R)


class Llama3(Linear):
    """Llama 3.1's scaling (2407.21783): pairs with fewer than `low` turns in the original length are slowed by
    `factor`, those with more than `high` turns are unchanged, and those between are interpolated.
    """

    def __init__(
        self,
        dim: int,
        *,
        theta: Positive,
        fraction: Fraction,
        interleaved: bool,
        factor: Positive,
        low: Positive,
        high: Positive,
        original_len: Count,
    ):
        super().__init__(dim, theta=theta, fraction=fraction, interleaved=interleaved, factor=factor)
        if low >= high:
            raise UserError(f"model.pos.low={low:g} must be less than model.pos.high={high:g}.")
        self.low, self.high, self.original_len = low, high, original_len
        self.key += (low, high, original_len)

    def rates(self, R: int, device: torch.device) -> Tensor:
        rates = Rope.rates(self, R, device)
        rounds = self.original_len * rates / (2 * math.pi)
        kept = ((rounds - self.low) / (self.high - self.low)).clamp(0, 1)
        return rates * (kept + (1 - kept) / self.factor)


class Yarn(Linear):
    """YaRN (2309.00071): interpolates like Llama 3, by a ramp over the pairs, and sharpens attention by `magnitude`.

    Args:
        fast: pairs with more turns than this in the original length are unchanged.
        slow: pairs with fewer turns than this are slowed by `factor`.
        original_len: the sequence length that the model was trained with.
        truncate: round the ends of the ramp to whole pairs.
        magnitude: factor of rotated queries and keys; null means 0.1 ln(factor) + 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        theta: Positive,
        fraction: Fraction,
        interleaved: bool,
        factor: Positive,
        fast: Positive,
        slow: Positive,
        original_len: Count,
        truncate: bool,
        magnitude: Positive | None,
    ):
        super().__init__(dim, theta=theta, fraction=fraction, interleaved=interleaved, factor=factor)
        if theta <= 1:
            raise UserError(
                f"YaRN needs different wavelengths: model.pos.theta={theta:g} must be more than 1."
            )
        if slow >= fast:
            raise UserError(f"model.pos.slow={slow:g} must be less than model.pos.fast={fast:g}.")
        self.fast, self.slow, self.original_len, self.truncate = fast, slow, original_len, truncate
        self.magnitude = magnitude or 0.1 * math.log(max(factor, 1)) + 1
        self.key += (fast, slow, original_len, truncate, self.magnitude)

    def check(self, model: nn.Module) -> None:
        super().check(model)
        for reader in self.readers(model):
            low, high = self._ramp(self._turning(reader.rotated_dim))
            if low > high:
                raise UserError(
                    "YaRN's ramp lies outside the pairs of channels: over a length of"
                    f" model.pos.original_len={self.original_len}, all of them turn more often than"
                    f" model.pos.fast={self.fast:g}, or all turn less often than model.pos.slow={self.slow:g}. Set"
                    " another original_len or theta."
                )

    def rates(self, R: int, device: torch.device) -> Tensor:
        rates = Rope.rates(self, R, device)
        low, high = self._ramp(R)
        ramp = (torch.arange(R // 2, device=device) - low) / ((high - low) or 0.001)
        slowed = ramp.clamp(0, 1)
        return rates * (1 - slowed + slowed / self.factor)

    def _ramp(self, R: int) -> tuple[float, float]:
        """Return the indices of the pairs where the ramp begins and ends."""
        low, high = self._pair(self.fast, R), self._pair(self.slow, R)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, R - 1)

    def _pair(self, rounds: float, R: int) -> float:
        """Return the (fractional) index of the pair with this many turns in the original length."""
        return R * math.log(self.original_len / (rounds * 2 * math.pi)) / (2 * math.log(self.theta))
