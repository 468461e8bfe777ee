"""A short causal convolution: a weighted sum of each token and a few before it, per channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.model.context import Context, Layer
from minllm.model.parameter import Draw, Stream, constant, normal, parameter
from minllm.schema.options import Count


class CausalConv(nn.Module):
    """y_t = Σ w_i ∘ x_(t−i) + b over the last `width` tokens of the segment, as used before the scan of many mixers.

    weight_WC[0] is for the token itself.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        bias: bool = False,
        draw: Draw | None = None,
        stream: Stream = "within",
    ):
        super().__init__()
        self.width, self.channels = width, channels
        draw = draw or normal(width**-0.5)
        self.weight_WC = parameter(width, channels, kind="vector", draw=draw, stream=stream)
        self.bias = parameter(channels, kind="vector", draw=constant(0), stream=stream) if bias else None

    def forward(self, x_BTC: Tensor, ctx: Context, state: Tail | None = None) -> Tensor:
        T, W = x_BTC.shape[1], self.width
        padded_BTC = F.pad(x_BTC, (0, 0, W - 1, 0)) if state is None else state.extend(x_BTC)
        # in the input's precision, as products are
        weight_WC = self.weight_WC.to(x_BTC.dtype)
        y_BTC = weight_WC[0] * x_BTC
        if self.bias is not None:
            y_BTC = y_BTC + self.bias.to(x_BTC.dtype)
        for i in range(1, W):
            earlier_BTC = padded_BTC[:, W - 1 - i : W - 1 - i + T]
            if ctx.segments_BT is not None:
                # a token sees only its own segment: as many tokens back as its position in it
                earlier_BTC = torch.where((ctx.positions_BT >= i)[..., None], earlier_BTC, 0)
            y_BTC = torch.addcmul(y_BTC, weight_WC[i], earlier_BTC)
        return y_BTC

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Tail:
        return Tail(torch.zeros(batch, self.width - 1, self.channels, device=device, dtype=dtype))


class ShortConv(nn.Module):
    """The convolution as a branch: a Canon layer (2512.17351) or, without any other mixer, a baseline.

    Args:
        width: how many tokens each token sees, including itself, W.
    """

    def __init__(self, dim: int, layer: Layer, *, width: Count):
        super().__init__()
        self.conv = CausalConv(dim, width, draw=normal((width * layer.branches) ** -0.5), stream="writes")

    def forward(self, x_BTD: Tensor, ctx: Context, state: Tail | None = None) -> Tensor:
        return self.conv(x_BTD, ctx, state)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Tail:
        return self.conv.init_state(batch, device=device, dtype=dtype)


@dataclass
class Tail:
    """The last W − 1 inputs."""

    tail_BWC: Tensor

    def extend(self, x_BTC: Tensor) -> Tensor:
        """Return the stored inputs followed by the next ones; store the last W − 1 of these."""
        extended_BTC = torch.cat([self.tail_BWC.to(x_BTC.dtype), x_BTC], dim=1)
        self.tail_BWC.copy_(extended_BTC[:, x_BTC.shape[1] :])
        return extended_BTC

    def tensors(self) -> list[Tensor]:
        return [self.tail_BWC]
