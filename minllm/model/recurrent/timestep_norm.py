"""Megalodon's norm over time: statistics of all tokens so far (2404.08801)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context
from minllm.model.parameter import constant, parameter
from minllm.model.precision import in_fp32
from minllm.model.scans.linear import linear_scan
from minllm.schema.options import Count


class TimestepNorm(nn.Module):
    """Subtract the mean and divide by the standard deviation of a group's channels over all tokens so far.

    Only tokens of the same segment count, including the current one. A gain 1 + w and a bias per channel follow.

    Args:
        dim: number of channels, D.
        n_groups: groups of channels, G.
        eps: added to the variance.
    """

    def __init__(self, dim: int, n_groups: Count, *, eps: float):
        super().__init__()
        if dim % n_groups:
            raise UserError(
                f"model.dim={dim} isn't divisible by n_groups={n_groups}: make n_groups a divisor."
            )
        self.n_groups, self.eps = n_groups, eps
        self.weight = parameter(dim, kind="vector", draw=constant(0))
        self.bias = parameter(dim, kind="vector", draw=constant(0))

    def forward(self, x_BTD: Tensor, ctx: Context, state: Statistics | None = None) -> Tensor:
        held = (None, None) if state is None else (state.mean_BG, state.var_BG)
        y_BTD, mean_BTG, var_BTG = in_fp32(functools.partial(self._normed, ctx.positions_BT), x_BTD, *held)
        if state is not None:
            state.mean_BG.copy_(mean_BTG[:, -1]), state.var_BG.copy_(var_BTG[:, -1])
        return y_BTD

    def _normed(
        self, positions_BT: Tensor, x_BTD: Tensor, mean0_BG: Tensor | None, var0_BG: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_BTGC = x_BTD.unflatten(-1, (self.n_groups, -1))
        own_mean_BTG = x_BTGC.mean(-1)
        own_var_BTG = (x_BTGC - own_mean_BTG[..., None]).square().mean(-1)
        # Running averages rather than sums: they stay accurate in a long text, and restart with each segment, where n
        # is 1. The variance adds the squared deviation of each token's mean, because subtracting squares would lose
        # precision if the mean is large.
        n_BT1 = (positions_BT + 1)[..., None].to(x_BTD.dtype)
        keep_BT1 = (n_BT1 - 1) / n_BT1
        mean_BTG = linear_scan(keep_BT1, own_mean_BTG / n_BT1, mean0_BG)
        apart_BTG = (own_mean_BTG - mean_BTG).square() / (n_BT1 - 1).clamp(min=1)
        var_BTG = linear_scan(keep_BT1, own_var_BTG / n_BT1 + apart_BTG, var0_BG)
        scale_BTG = torch.rsqrt(var_BTG + self.eps)
        normed_BTD = ((x_BTGC - mean_BTG[..., None]) * scale_BTG[..., None]).flatten(2)
        return torch.addcmul(self.bias, normed_BTD, 1 + self.weight), mean_BTG, var_BTG

    def init_state(self, batch: int, *, device: torch.device) -> Statistics:
        return Statistics(*(torch.zeros(batch, self.n_groups, device=device) for _ in range(2)))


@dataclass
class Statistics:
    """The running mean and variance of each group, always fp32; the token's position gives their count."""

    mean_BG: Tensor
    var_BG: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.mean_BG, self.var_BG]
