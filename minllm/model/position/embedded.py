"""Position encodings that are added to the embedded tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minllm.errors import UserError
from minllm.model.context import Context, Position
from minllm.model.parameter import normal, parameter
from minllm.schema.options import Count, Positive


class Learned(Position):
    """One learned vector per position, added to the embedding (GPT-2), for up to `max_len` positions."""

    def __init__(self, dim: int, *, max_len: Count):
        super().__init__(dim)
        self.max_positions = max_len
        self.weight = parameter(max_len, dim, kind="embedding", draw=normal(1.0), stream="writes")

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        if (
            ctx.slot_1 is None
        ):  # a GPU that replays a step can't raise an error: who takes static steps knows the room
            self._check(x_BTD, ctx)
        return x_BTD + F.embedding(ctx.positions_BT, self.weight)

    def _check(self, x_BTD: Tensor, ctx: Context) -> None:
        longest = ctx.past + x_BTD.shape[1]
        if longest > self.max_positions and ctx.segments_BT is not None and not x_BTD.is_meta:
            longest = int(ctx.positions_BT.max()) + 1  # positions restart in each segment
        if longest > self.max_positions:
            raise UserError(
                f"model.pos has {self.max_positions} learned positions, but the text has {longest} tokens: increase"
                " model.pos.max_len, or shorten the text."
            )


class Sinusoidal(Position):
    """Fixed sines and cosines of D/2 wavelengths, added to the embedding (1706.03762).

    Args:
        theta: the longest wavelength is just under 2π times this.
        amplitude: amplitude of the waves; embedded tokens begin at 0.5 if they are multiplied by √D.
    """

    def __init__(self, dim: int, *, theta: Positive, amplitude: Positive):
        super().__init__(dim)
        if dim % 2:
            raise UserError(f"Sines and cosines come in pairs, but model.dim={dim} is odd: make it even.")
        self.theta, self.amplitude = theta, amplitude

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        D = x_BTD.shape[-1]
        rates_D = self.theta ** -(torch.arange(0, D, 2, device=x_BTD.device) / D)
        angles_BTD = ctx.positions_BT[..., None] * rates_D
        waves_BTD = torch.stack([angles_BTD.sin(), angles_BTD.cos()], dim=-1).flatten(-2)
        return x_BTD + self.amplitude * waves_BTD.to(x_BTD.dtype)
