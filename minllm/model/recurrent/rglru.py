"""Griffin's recurrent block: a short convolution followed by a gated linear recurrence (2402.19427)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Layer
from minllm.model.parameter import Draw, Linear, SplitLinear, constant, normal, parameter
from minllm.model.precision import in_fp32
from minllm.model.recurrent.carry import Carry, recalled, remember
from minllm.model.recurrent.conv import CausalConv
from minllm.model.scans.linear import linear_scan
from minllm.schema.options import Count

C = 8.0
"""Factor of the gate in the logarithm of the decay; the paper's c."""


class RGLRU(nn.Module):
    """Griffin's and Hawk's recurrent block (2402.19427), as in RecurrentGemma (2404.07839).

        x ──┬─► linear ─► gelu ───────────────────┐
            └─► linear ─► convolution ─► RG-LRU ──∘──► linear ─► y

    The real-gated linear recurrent unit, elementwise, with gates r and i that each see one block of x:

        h_t = a_t h_(t-1) + √(1 − a_t²) i_t x_t        a_t = exp(−8 r_t softplus(p))

    A segment's first token isn't scaled: h = i x.

    Args:
        width: recurrent width, F; null means D.
        n_blocks: number of blocks of the gates' block-diagonal matrices.
        conv_width: how many tokens the convolution sees.
    """

    def __init__(self, dim: int, layer: Layer, *, width: Count | None, n_blocks: Count, conv_width: Count):
        super().__init__()
        self.width = width = width or dim
        if width % n_blocks:
            raise UserError(
                f"The recurrent width {width} isn't divisible by n_blocks={n_blocks}: make n_blocks a divisor."
            )
        self.gate_x = SplitLinear(dim, [width, width], stream="reads", bias=True)
        self.conv = CausalConv(width, conv_width, bias=True)
        K = width // n_blocks
        # for each block, the matrices of the input's gate i and of the recurrence's gate r
        self.gates_HKM = parameter(n_blocks, K, 2 * K, kind="matrix", draw=normal(K**-0.5), inputs=1)
        self.gates_bias_HM = parameter(n_blocks, 2 * K, kind="vector", draw=constant(0))
        self.decay_F = parameter(width, kind="vector", draw=_decays_between(0.9, 0.999))
        self.out = Linear(width, dim, stream="writes", bias=True, gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Carry | None = None) -> Tensor:
        gate_BTF, x_BTF = self.gate_x(x_BTD)
        h0_BF, tail = recalled(state)
        x_BTF = self.conv(x_BTF, ctx, tail)
        x_HXK = x_BTF.unflatten(-1, (len(self.gates_HKM), -1)).flatten(0, 1).transpose(0, 1)
        gates_HXM = torch.baddbmm(self.gates_bias_HM[:, None], x_HXK, self.gates_HKM)
        i_BTF, r_BTF = (g.transpose(0, 1).reshape(x_BTF.shape) for g in gates_HXM.chunk(2, dim=-1))
        a_BTF, b_BTF = in_fp32(self._gated, x_BTF, i_BTF, r_BTF, (ctx.positions_BT == 0)[..., None])
        h_BTF = linear_scan(a_BTF, b_BTF, h0_BF)
        remember(state, h_BTF[:, -1])
        return self.out(h_BTF.to(gate_BTF.dtype) * F.gelu(gate_BTF, approximate="tanh"))

    def _gated(
        self, x_BTF: Tensor, i_BTF: Tensor, r_BTF: Tensor, begins_BT1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the decay and the added input."""
        log_a_BTF = -C * torch.sigmoid(r_BTF) * F.softplus(self.decay_F)
        # 1 − a², bounded because the square root has an infinite slope at 0
        scale_BTF = (-torch.expm1(2 * log_a_BTF)).clamp(min=1e-8).sqrt()
        added_BTF = scale_BTF.masked_fill(begins_BT1, 1) * torch.sigmoid(i_BTF) * x_BTF
        return log_a_BTF.exp().masked_fill(begins_BT1, 0), added_BTF

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Carry:
        hidden_BF = torch.zeros(batch, self.width, device=device)
        return Carry(hidden_BF, self.conv.init_state(batch, device=device, dtype=dtype))


def _decays_between(low: float, high: float) -> Draw:
    """Draw p so that the decay of an open gate, exp(−8 softplus(p)), is uniform between the two, as in the paper."""

    def draw(value: Tensor, generator: torch.Generator) -> None:
        log_a = value.uniform_(low, high, generator=generator).log()
        value.copy_(torch.expm1(-log_a / C).log())  # softplus, inverted

    return draw
