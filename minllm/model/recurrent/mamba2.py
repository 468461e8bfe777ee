"""Mamba-2: a state space model as linear attention with one decay per head (2405.21060)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Layer
from minllm.model.parameter import Linear, SplitLinear, constant, log_between, parameter, steps_between
from minllm.model.precision import in_fp32
from minllm.model.recurrent.carry import Carry, recalled, remember
from minllm.model.recurrent.conv import CausalConv
from minllm.model.scans.decaying import decaying_by_head
from minllm.schema.options import Count, Positive


class Mamba2(nn.Module):
    """The Mamba-2 block (2405.21060). Each of its H heads has a state of N × P numbers with a single decay.

        x ──┬─► linear ─► convolution ─► silu ─► scan ──┐
            └─► linear ─► silu ─────────────────────────∘─► norm ─► linear ─► y

        S_t = exp(−dt_t exp(log_A)) S_(t-1) + dt_t B_t xᵀ_t        y_t = Sᵀ_t C_t + D x_t

    Args:
        expand: how many times D the inner width F is.
        head_dim: width of a head, P; F / P is the number of heads, H.
        n_groups: number of B and C vectors, G; H / G heads share one, and the norm is over each group separately.
        n_state: state size per channel of a head, N.
        dt_min, dt_max: initial time steps are log-uniform between these.
        conv_width: how many tokens the convolution sees.
        conv_bias: add a bias to the convolution.
        bias: add a bias to the first and last products.
        chunk: tokens that are computed at once; affects speed and memory, but not results.

    Raises:
        UserError: the inner width isn't a multiple of head_dim, or the number of heads of n_groups.
    """

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        expand: Count,
        head_dim: Count,
        n_groups: Count,
        n_state: Count,
        dt_min: Positive,
        dt_max: Positive,
        conv_width: Count,
        conv_bias: bool,
        bias: bool,
        chunk: Count,
    ):
        super().__init__()
        width, G, N, self.head_dim, self.chunk = expand * dim, n_groups, n_state, head_dim, chunk
        if width % head_dim:
            raise UserError(
                f"The inner width {width} (expand x dim) isn't divisible by head_dim={head_dim}: make it a divisor."
            )
        H = width // head_dim
        if H % G:
            raise UserError(f"{H} heads can't be split into n_groups={G}: make n_groups a divisor of {H}.")
        self.n_groups, self.sizes = G, [width, G * N, G * N]
        self.gate_x_dt = SplitLinear(dim, [width, sum(self.sizes), H], stream="reads", bias=bias)
        self.conv = CausalConv(sum(self.sizes), conv_width, bias=conv_bias)
        self.dt_bias_H = parameter(H, kind="vector", draw=steps_between(dt_min, dt_max))
        self.log_A_H = parameter(H, kind="vector", draw=log_between(1, 16))
        self.skip_H = parameter(H, kind="vector", draw=constant(1))
        self.gain_F = parameter(width, kind="vector", draw=constant(1))
        self.eps = layer.norms.eps
        self.out = Linear(width, dim, stream="writes", bias=bias, gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Carry | None = None) -> Tensor:
        gate_BTF, x_B_C, dt_BTH = self.gate_x_dt(x_BTD)
        hidden_BHNP, tail = recalled(state)
        x_B_C = F.silu(self.conv(x_B_C, ctx, tail))
        x_BTF, B_BTM, C_BTM = x_B_C.split(self.sizes, dim=-1)
        x_BTHP = x_BTF.unflatten(-1, (-1, self.head_dim))
        B_BTGN, C_BTGN = (x.unflatten(-1, (self.n_groups, -1)) for x in (B_BTM, C_BTM))
        dt_BTH, log_a_BTH = in_fp32(self._steps, dt_BTH)
        y_BTHP, hidden_BHNP = decaying_by_head(
            C_BTGN,
            B_BTGN,
            dt_BTH[..., None] * x_BTHP,
            log_a_BTH,
            hidden_BHNP,
            ctx.starts(),
            chunk=self.chunk,
        )
        y_BTHP = y_BTHP + self.skip_H[:, None] * x_BTHP
        remember(state, hidden_BHNP)
        y_BTF = y_BTHP.flatten(2).to(gate_BTF.dtype) * F.silu(gate_BTF)
        y_BTGM = y_BTF.unflatten(-1, (self.n_groups, -1))
        y_BTF = F.rms_norm(y_BTGM, y_BTGM.shape[-1:], eps=self.eps).flatten(2)
        return self.out(self.gain_F * y_BTF)

    def _steps(self, dt_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Return each head's time step and the logarithm of its decay."""
        dt_BTH = F.softplus(dt_BTH + self.dt_bias_H)
        return dt_BTH, -self.log_A_H.exp() * dt_BTH

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Carry:
        H, N = len(self.log_A_H), self.sizes[1] // self.n_groups
        hidden_BHNP = torch.zeros(batch, H, N, self.head_dim, device=device)
        return Carry(hidden_BHNP, self.conv.init_state(batch, device=device, dtype=dtype))
