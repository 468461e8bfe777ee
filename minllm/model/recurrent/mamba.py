"""Mamba: a state space model with input-dependent time steps, B and C (2312.00752)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.model.context import Context, Layer
from minllm.model.parameter import Linear, SplitLinear, constant, parameter, steps_between
from minllm.model.precision import in_fp32
from minllm.model.recurrent.carry import Carry, recalled, remember
from minllm.model.recurrent.conv import CausalConv
from minllm.model.scans.selective import selective_scan
from minllm.schema.options import Count, Positive


class Mamba(nn.Module):
    """The Mamba block (2312.00752), with a state of N numbers per channel.

        x ──┬─► linear ─► convolution ─► silu ─► selective scan ──┐
            └─► linear ─► silu ───────────────────────────────────∘──► linear ─► y

    The time step dt of each channel, and B and C of all channels, are projections of the convolution's output u:

        h_t = exp(dt_t A) ∘ h_(t-1) + dt_t B_t u_t        y_t = C_t · h_t + D u_t

    Args:
        expand: how many times D the inner width F is.
        n_state: state size per channel, N.
        dt_rank: width of the time steps' bottleneck, R; null means D / 16, rounded up.
        dt_min, dt_max: initial time steps are log-uniform between these.
        conv_width: how many tokens the convolution sees.
        conv_bias: add a bias to the convolution.
        inner_norms: norm the inputs of dt, B and C, as in Jamba (2403.19887).
        bias: add a bias to the first and last products.
    """

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        expand: Count,
        n_state: Count,
        dt_rank: Count | None,
        dt_min: Positive,
        dt_max: Positive,
        conv_width: Count,
        conv_bias: bool,
        inner_norms: bool,
        bias: bool,
    ):
        super().__init__()
        width, N, R = expand * dim, n_state, dt_rank or math.ceil(dim / 16)
        self.x_gate = SplitLinear(dim, [width, width], stream="reads", bias=bias)
        self.conv = CausalConv(width, conv_width, bias=conv_bias)
        self.dt_B_C = SplitLinear(width, [R, N, N], stream="within")
        self.inner_norms = nn.ModuleList(layer.norms.make(n) for n in (R, N, N)) if inner_norms else None
        self.dt = Linear(
            R, width, stream="within", gain=3**-0.5
        )  # the variance of a uniform draw within ± R^-½
        self.dt_bias_F = parameter(width, kind="vector", draw=steps_between(dt_min, dt_max))
        self.log_A_FN = parameter(width, N, kind="vector", draw=_log_1_to_N)
        self.skip_F = parameter(width, kind="vector", draw=constant(1))
        self.out = Linear(width, dim, stream="writes", bias=bias, gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Carry | None = None) -> Tensor:
        u_BTF, gate_BTF = self.x_gate(x_BTD)
        u_BTF = F.silu(self.conv(u_BTF, ctx, recalled(state)[1]))
        y_BTF = self._scan(u_BTF, ctx, state)
        return self.out(y_BTF.to(gate_BTF.dtype) * F.silu(gate_BTF))

    def _scan(self, u_BTF: Tensor, ctx: Context, state: Carry | None) -> Tensor:
        dt_B_C = self.dt_B_C(u_BTF)
        if self.inner_norms is not None:
            dt_B_C = [norm(x) for norm, x in zip(self.inner_norms, dt_B_C)]
        dt_BTR, B_BTN, C_BTN = dt_B_C
        dt_BTF = in_fp32(lambda dt: F.softplus(dt + self.dt_bias_F), self.dt(dt_BTR))
        keep_BT = None if ctx.begins() is None else (~ctx.begins()).expand(u_BTF.shape[:2])
        h0_BFN, _ = recalled(state)
        y_BTF, h_BFN = selective_scan(u_BTF, dt_BTF, -self.log_A_FN.exp(), B_BTN, C_BTN, h0_BFN, keep_BT)
        remember(state, h_BFN)
        return y_BTF + self.skip_F * u_BTF

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Carry:
        hidden_BFN = torch.zeros(batch, *self.log_A_FN.shape, device=device)
        return Carry(hidden_BFN, self.conv.init_state(batch, device=device, dtype=dtype))


def _log_1_to_N(value: Tensor, generator: torch.Generator) -> None:
    value.copy_(torch.arange(1, value.shape[1] + 1).log())
