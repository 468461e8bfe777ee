"""minGRU: a gated recurrent unit whose gates don't depend on its state, so it can be computed in parallel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minllm.model.context import Context, Layer
from minllm.model.parameter import Linear, SplitLinear
from minllm.model.precision import in_fp32
from minllm.model.recurrent.carry import Carry, recalled, remember
from minllm.model.scans.linear import linear_scan
from minllm.schema.options import Count


class MinGRU(nn.Module):
    """h_t = (1 − z_t) h_(t-1) + z_t (W x_t + c) with z = σ(U x + b): "Were RNNs All We Needed?" (2410.01201).

    Args:
        width: size of the hidden state, F; null means D.
    """

    def __init__(self, dim: int, layer: Layer, *, width: Count | None):
        super().__init__()
        self.width = width or dim
        self.gate_new = SplitLinear(dim, [self.width, self.width], stream="reads", bias=True)
        self.out = Linear(self.width, dim, stream="writes", gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Carry | None = None) -> Tensor:
        z_BTF, new_BTF = self.gate_new(x_BTD)
        # bf16 would round keep to 1
        keep_BTF, added_BTF = in_fp32(
            lambda z, new: (torch.sigmoid(-z), torch.sigmoid(z) * new), z_BTF, new_BTF
        )
        if ctx.begins() is not None:
            keep_BTF = keep_BTF.masked_fill(ctx.begins()[..., None], 0)
        h_BTF = linear_scan(keep_BTF, added_BTF, recalled(state)[0])
        remember(state, h_BTF[:, -1])
        return self.out(h_BTF.to(z_BTF.dtype))

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Carry:
        return Carry(torch.zeros(batch, self.width, device=device))
