"""How a model knows where its tokens stand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context
from minllm.model.parameter import normal, parameter
from minllm.options import Count, Positive


class Position(nn.Module):
    """No positions at all (NoPE, 2305.19466), and what other kinds inherit from.

    Positions may enter at the embedding (`embed`) or at attention's queries and keys (`rotate`).
    """

    places: int | None = None
    """How many places there are; None where there is no end of them."""

    def __init__(self, dim: int):
        super().__init__()

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return x_BTD

    def rotate(self, x_BHTK: Tensor, ctx: Context) -> Tensor:
        return x_BHTK


class Rope(Position):
    """Rotary embedding (2104.09864): pair i of a head's channels turns by t / θ^(2i/K) at place t.

    Channel i is paired with channel i + K/2, as Llama's published weights have it.
    """

    def __init__(self, dim: int, *, theta: Positive):
        super().__init__(dim)
        self.theta = theta

    def rotate(self, x_BHTK: Tensor, ctx: Context) -> Tensor:
        K = x_BHTK.shape[-1]
        cos_B1TK, sin_B1TK = ctx.once((id(self), K), lambda: self._turns(ctx.positions_BT, K, x_BHTK.dtype))
        a, b = x_BHTK.chunk(2, dim=-1)
        return torch.addcmul(x_BHTK * cos_B1TK, torch.cat([b, a], dim=-1), sin_B1TK)

    def _turns(self, positions_BT: Tensor, K: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if K % 2:
            raise UserError(
                f"RoPE turns channels in pairs, and a head width of {K} is odd: set an even head_dim."
            )
        rates_K = self.theta ** -(torch.arange(0, K, 2, device=positions_BT.device) / K)
        angles_BTK = positions_BT[..., None] * rates_K
        cos, sin = angles_BTK.cos().to(dtype), angles_BTK.sin().to(dtype)
        # (a, b) -> (a cos - b sin, b cos + a sin): the halves swapped, b meets -sin and a meets +sin. In one cat, since
        # compiled code keeps its result; the cosines by themselves would be computed again in each layer's backward
        return torch.cat([cos, cos, -sin, sin], -1)[:, None].chunk(2, -1)


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
