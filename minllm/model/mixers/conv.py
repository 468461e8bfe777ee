"""A short causal convolution: each token adds up itself and a few before it, channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minllm.model.context import Context, Layer
from minllm.model.parameter import normal, parameter
from minllm.options import Count


class ShortConv(nn.Module):
    """y_t = Σ w_i ∘ x_(t−i) over the last `width` tokens of the segment; a branch of its own, as Canon layers are.

    Canon layers: "Physics of Language Models, part 4.1" (2512.17351). Without any other mixer it is the null model.

    Args:
        width: how many tokens each one sees, itself included, W.
    """

    def __init__(self, dim: int, layer: Layer, *, width: Count):
        super().__init__()
        self.width = width
        draw = normal((width * layer.branches) ** -0.5)
        self.weight_WD = parameter(width, dim, kind="vector", draw=draw, stream="writes")

    def forward(self, x_BTD: Tensor, ctx: Context, state: Tail | None = None) -> Tensor:
        (B, T, D), W = x_BTD.shape, self.width
        tail_BWD = x_BTD.new_zeros(B, W - 1, D) if state is None else state.tail_BWD.to(x_BTD.dtype)
        padded_BTD = torch.cat([tail_BWD, x_BTD], dim=1)
        if state is not None:
            state.tail_BWD = padded_BTD[:, T:].to(state.tail_BWD.dtype, copy=True)
        y_BTD = self.weight_WD[0] * x_BTD
        for i in range(1, W):
            earlier_BTD = padded_BTD[:, W - 1 - i : W - 1 - i + T]
            # a token sees its own segment only: as many tokens back as its position in it
            inside_BT1 = (ctx.positions_BT >= i)[..., None]
            y_BTD = y_BTD + self.weight_WD[i] * torch.where(inside_BT1, earlier_BTD, 0)
        return y_BTD

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Tail:
        return Tail(torch.zeros(batch, self.width - 1, self.weight_WD.shape[1], device=device, dtype=dtype))


@dataclass
class Tail:
    """The last W − 1 inputs."""

    tail_BWD: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.tail_BWD]
