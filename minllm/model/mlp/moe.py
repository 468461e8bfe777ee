"""Mixture of experts: many MLPs, of which each token uses a few."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from minllm.errors import UserError
from minllm.model.context import PAD, Context, Layer
from minllm.model.contract import like, made, made_branch, refuse_plain_parameters
from minllm.model.mlp.router import Router, counted
from minllm.schema.options import Count, Positive


class MoE(nn.Module):
    """Σ_e w_e f_e(x) over the few experts f_e that a router chooses for each token (1701.06538).

    x ─┬─ router ─ weights, chosen ──────────┐
       ├─ rows of expert 0 ─ expert 0 ─┐     │
       ├─ rows of expert 1 ─ expert 1 ─┼─ weigh and add ─(+)─► y
       └─ shared ──────────────────────┼─────────────────┘

    Args:
        n_experts: number of experts, E.
        top_k: number of experts per token.
        expert: one expert, any MLP. If its `hidden` is null, a token's experts are together as wide as a single MLP, so
            that the number of active parameters is the same as without experts.
        shared: the shared expert, an MLP that every token uses, as in DeepSeekMoE (2401.06066), or null.
        router: how experts are chosen.
        capacity: expert capacity in training, the number of tokens of a row as a multiple of an even share; later
            tokens are dropped. Null means no limit.

    Raises:
        UserError: top_k is more than n_experts, or an expert is a mixture of experts itself.
    """

    static_steps = False  # the host needs the number of rows of each expert

    def __init__(
        self,
        dim: int,
        layer: Layer,
        *,
        n_experts: Count,
        top_k: Count,
        expert: Callable[[int, Layer], nn.Module],
        shared: Callable[[int, Layer], nn.Module] | None = None,
        router: Callable[[int, int, int], Router],
        capacity: Positive | None,
    ):
        super().__init__()
        if top_k > n_experts:
            raise UserError(
                f"top_k={top_k} is more than n_experts={n_experts}: set top_k={n_experts} or less."
            )
        self.n_experts, self.top_k, self.capacity = n_experts, top_k, capacity
        self.router = made("the router", router, dim=dim, n_experts=n_experts, top_k=top_k)
        part = replace(layer, share=layer.share / (top_k + (shared is not None)))
        first = made_branch("an expert", expert, dim=dim, layer=part)  # the others are built alike
        self.experts = nn.ModuleList([first, *(like(first, expert(dim, part)) for _ in range(n_experts - 1))])
        if any(isinstance(module, MoE) for module in self.experts.modules()):
            raise UserError(
                "An expert can't be a mixture of experts itself: choose another MLP as the expert."
            )
        refuse_plain_parameters(self.experts)
        for param in self.experts.parameters():
            param.role = replace(param.role, active=top_k / n_experts)
        self.shared = (
            None if shared is None else made_branch("the shared expert", shared, dim=dim, layer=part)
        )
        self.register_buffer("wanted", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("kept", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        # not compiled, because the number of rows of an expert changes in every pass
        mixed = torch.compiler.disable(self.mixed) if torch.compiler.is_compiling() else self.mixed
        return mixed(x_BTD, ctx)

    def mixed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        weights_BTE, chosen_BTE = self.router(x_BTD, ctx)
        if ctx.segments_BT is not None:
            # padding uses no expert, and no expert capacity
            chosen_BTE = chosen_BTE & (ctx.segments_BT != PAD)[:, :, None]
        if self.capacity and self.training:
            chosen_BTE = self.within_capacity(chosen_BTE, ctx)
        y_BTD = self.weighted_sum(x_BTD, weights_BTE, chosen_BTE, ctx)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD, ctx)

    def weighted_sum(self, x_BTD: Tensor, weights_BTE: Tensor, chosen_BTE: Tensor, ctx: Context) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs; each expert reads the rows that chose it, R."""
        token_R, expert_R, sizes_E = self.rows(chosen_BTE)
        x_RD = x_BTD.flatten(0, 1).index_select(0, token_R)
        outputs = [
            output(expert, x_1RD, ctx)
            for expert, x_1RD in zip(self.experts, x_RD[None].split(sizes_E, dim=1))
            # when training, an expert that no token chose gets a gradient of zero instead of None
            if x_1RD.shape[1] or torch.is_grad_enabled()
        ]
        y_RD = torch.cat(outputs, dim=1)[0] if outputs else x_RD
        weight_R = weights_BTE.flatten().index_select(0, token_R * self.n_experts + expert_R)
        y_RD = y_RD * weight_R[:, None].to(y_RD.dtype)
        nothing = torch.zeros_like(x_BTD, dtype=y_RD.dtype).flatten(0, 1)
        return nothing.index_add(0, token_R, y_RD).view_as(x_BTD)

    def rows(self, chosen_BTE: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Return the tokens and experts of all rows, expert after expert, and how many rows each expert has."""
        B, T, E = chosen_BTE.shape
        if chosen_BTE.is_meta or isinstance(chosen_BTE, FakeTensor):
            # there are no values: assume an even load
            R = B * T * self.top_k
            row_R = torch.zeros(R, dtype=torch.int64, device=chosen_BTE.device)
            return row_R, row_R, [R // E + (e < R % E) for e in range(E)]
        expert_R, token_R = chosen_BTE.flatten(0, 1).T.nonzero(as_tuple=True)
        return token_R, expert_R, expert_R.bincount(minlength=E).tolist()

    def within_capacity(self, chosen_BTE: Tensor, ctx: Context) -> Tensor:
        """Return the choices without those beyond an expert's capacity in a row."""
        places = math.ceil(self.capacity * chosen_BTE.shape[1] * self.top_k / self.n_experts)
        kept_BTE = chosen_BTE & (chosen_BTE.cumsum(dim=1) <= places)
        counted_BT1 = counted(chosen_BTE, ctx)
        self.wanted += (chosen_BTE & counted_BT1).sum()
        self.kept += (kept_BTE & counted_BT1).sum()
        return kept_BTE

    def before_step(self) -> None:
        self.wanted.zero_(), self.kept.zero_()

    def counts(self) -> list[Tensor]:
        return [self.wanted, self.kept]

    def after_step(self) -> dict[str, Tensor]:
        """Return the fraction of choices dropped because of the capacity; empty if there is no capacity."""
        return {} if self.capacity is None else {"router_dropped": 1 - self.kept / self.wanted.clamp(min=1)}


def output(expert: nn.Module, x_1RD: Tensor, ctx: Context) -> Tensor:
    """Return an expert's output for its rows, whose number is rounded up where each number costs a compilation.

    On a CPU, products in bf16 are compiled for their shapes, and the number of rows changes in every pass.
    """
    R = x_1RD.shape[1]
    in_bf16 = torch.is_autocast_enabled("cpu") or x_1RD.dtype == torch.bfloat16
    if x_1RD.device.type != "cpu" or not in_bf16 or R < 16:  # so few are the rows of generation
        return expert(x_1RD, ctx)
    more = -R % max(64, 2 ** (R.bit_length() - 4))
    return expert(F.pad(x_1RD, (0, 0, 0, more)), ctx)[:, :R]
