"""Routers: which experts each token uses, and their weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import PAD, Context
from minllm.model.parameter import Linear
from minllm.model.precision import in_fp32
from minllm.schema.options import Count, NonNegative, Positive


class Router(nn.Module):
    """The base class of routers: a linear projection scores all experts, in fp32 even under autocast.

    A router returns weights_BTE and chosen_BTE: the weights of the experts' outputs, and which experts a token uses.
    In training it counts statistics over each step.
    """

    def __init__(self, dim: int, n_experts: int, top_k: int, bias: bool):
        super().__init__()
        self.n_experts, self.top_k = n_experts, top_k
        # the same initial scale as the head: almost no preferences
        self.score = Linear(dim, n_experts, stream="reads", bias=bias, gain=0.02 * dim**0.5, is_flat=True)
        self.register_buffer("load_E", torch.zeros(n_experts, dtype=torch.int64), persistent=False)
        self.register_buffer("entropy", torch.zeros(()), persistent=False)
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x_BTD: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def before_step(self) -> None:
        self.load_E.zero_(), self.entropy.zero_(), self.tokens.zero_()

    def counts(self) -> list[Tensor]:
        return [self.load_E, self.entropy, self.tokens]

    def after_step(self) -> dict[str, Tensor]:
        """Return the mean entropy of a token's scores in nats, and the largest load of an expert; an even load is 1."""
        return {
            "router_entropy": self.entropy / self.tokens.clamp(min=1),
            "router_busiest": self.load_E.max() / self.load_E.sum().clamp(min=1) * self.n_experts,
        }

    @torch.no_grad()
    def count(self, probs_BTE: Tensor, chosen_BTE: Tensor, ctx: Context) -> None:
        counted_BT1 = counted(probs_BTE, ctx)
        self.load_E += (chosen_BTE & counted_BT1).sum(dim=(0, 1))
        self.entropy += (torch.special.entr(probs_BTE) * counted_BT1).sum()
        self.tokens += counted_BT1.sum()


class Softmax(Router):
    """Each token uses the `top_k` experts with the largest softmax scores (2101.03961, 2401.04088).

    Args:
        renormalise: the weights of a token's experts add up to 1, as in Mixtral; otherwise they are the softmax's, as
            in OLMoE (2409.02060).
        bias: add a bias to the scores, as in gpt-oss (2508.10925).
        balance: coefficient of Switch's loss E Σ f_i P_i, where f_i is the fraction of choices of expert i and P_i its
            mean probability, over the rows of a micro-batch (of all processes); the loss is at least 1.
        z_loss: coefficient of the mean of logsumexp(scores)², which keeps scores small (ST-MoE, 2202.08906).
    """

    sum_over_processes: Callable[[Tensor], Tensor] = staticmethod(lambda x: x)
    """Returns the sum of a tensor over the processes that train the model, in each of their passes."""

    def __init__(
        self,
        dim: int,
        n_experts: int,
        top_k: int,
        *,
        renormalise: bool,
        bias: bool,
        balance: NonNegative,
        z_loss: NonNegative,
    ):
        super().__init__(dim, n_experts, top_k, bias)
        _refuse_constant_weights(top_k, renormalise)
        self.renormalise, self.balance, self.z_loss = renormalise, balance, z_loss
        self.sums_in_passes = balance > 0 or z_loss > 0

    def forward(self, x_BTD: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        logits_BTE = in_fp32(self.score, x_BTD)
        probs_BTE = logits_BTE.softmax(-1)
        chosen_BTE = largest(probs_BTE, self.top_k)
        if self.training:
            self.count(probs_BTE, chosen_BTE, ctx)
            if self.sums_in_passes:
                self.add_losses(logits_BTE, probs_BTE, chosen_BTE, ctx)
        weights_BTE = probs_BTE * chosen_BTE
        if self.renormalise:
            weights_BTE = weights_BTE / weights_BTE.sum(-1, keepdim=True)
        return weights_BTE, chosen_BTE

    def add_losses(self, logits_BTE: Tensor, probs_BTE: Tensor, chosen_BTE: Tensor, ctx: Context) -> None:
        counted_BT1 = counted(probs_BTE, ctx)
        tokens = self.sum_over_processes(counted_BT1.sum()).clamp(min=1)
        if self.balance:
            load_E = self.sum_over_processes((chosen_BTE & counted_BT1).sum(dim=(0, 1)))
            probs_E = self.sum_over_processes((probs_BTE * counted_BT1).sum(dim=(0, 1)))
            share_E, mean_E = load_E / (tokens * self.top_k), probs_E / tokens
            ctx.losses.append(self.balance * self.n_experts * (share_E * mean_E).sum())
        if self.z_loss:
            z_BT1 = logits_BTE.logsumexp(-1, keepdim=True)
            total = self.sum_over_processes((z_BT1.square() * counted_BT1).sum())
            ctx.losses.append(self.z_loss * total / tokens)


class Sigmoid(Router):
    """Scores are independent sigmoids, and a bias keeps the load even (2408.15664, DeepSeek-V3 2412.19437).

    The bias affects only the choice of experts and not their weights. After each step it increases by `bias_rate` for
    experts below the mean load, and decreases for those above it.

    Args:
        renormalise: divide the scores of a token's experts by their sum.
        scale: multiply the weights by this.
        bias_rate: how much the bias changes in each step; 0 means no change.
        n_groups: number of groups of experts.
        top_groups: number of groups per token: those whose best two experts have the largest sum.
    """

    def __init__(
        self,
        dim: int,
        n_experts: int,
        top_k: int,
        *,
        renormalise: bool,
        scale: Positive,
        bias_rate: NonNegative,
        n_groups: Count,
        top_groups: Count,
    ):
        super().__init__(dim, n_experts, top_k, bias=False)
        _refuse_constant_weights(top_k, renormalise)
        if n_experts % n_groups:
            raise UserError(
                f"{n_experts} experts can't be split into {n_groups} equal groups: n_experts must be a multiple of the"
                " router's n_groups."
            )
        if top_groups > n_groups or top_k > top_groups * (n_experts // n_groups):
            raise UserError(
                f"A token can't use top_k={top_k} experts in top_groups={top_groups} of n_groups={n_groups} groups"
                f" of {n_experts // n_groups}: set a smaller top_k, or another top_groups."
            )
        self.renormalise, self.scale, self.bias_rate = renormalise, scale, bias_rate
        self.n_groups, self.top_groups = n_groups, top_groups
        self.register_buffer("bias_E", torch.zeros(n_experts))

    def forward(self, x_BTD: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        scores_BTE = in_fp32(self.score, x_BTD).sigmoid()
        chosen_BTE = largest(self.within_groups(scores_BTE.detach() + self.bias_E), self.top_k)
        if self.training:
            self.count(scores_BTE / scores_BTE.sum(-1, keepdim=True), chosen_BTE, ctx)
        weights_BTE = scores_BTE * chosen_BTE
        if self.renormalise:
            weights_BTE = weights_BTE / (weights_BTE.sum(-1, keepdim=True) + 1e-20)
        return weights_BTE * self.scale, chosen_BTE

    def within_groups(self, scores_BTE: Tensor) -> Tensor:
        """Return the scores, with -inf for the experts of groups that a token doesn't use."""
        if self.top_groups == self.n_groups:
            return scores_BTE
        grouped_BTGE = scores_BTE.unflatten(-1, (self.n_groups, -1))
        best_BTG = grouped_BTGE.topk(min(2, grouped_BTGE.shape[-1]), dim=-1).values.sum(-1)
        open_BTG = largest(best_BTG, self.top_groups)
        return grouped_BTGE.masked_fill(~open_BTG[..., None], -torch.inf).flatten(-2)

    def after_step(self) -> dict[str, Tensor]:
        # compares load·E with the sum rather than load with the mean: integers compare without rounding
        self.bias_E += self.bias_rate * torch.sign(self.load_E.sum() - self.load_E * self.n_experts)
        return super().after_step()


class ExpertChoice(Router):
    """Each expert chooses the same number of tokens (2202.09368), so that a token has `top_k` experts on average.

    The choice is made for each document of a row separately. The weights are the softmax of the scores over experts.

    Args:
        bias: add a bias to the scores.
    """

    looks_ahead = (
        "This model can't generate: its experts choose among all tokens of a text, including those still to come."
        " Use model/mlp=moe for one that can."
    )

    def __init__(self, dim: int, n_experts: int, top_k: int, *, bias: bool):
        super().__init__(dim, n_experts, top_k, bias)

    def forward(self, x_BTD: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        probs_BTE = in_fp32(self.score, x_BTD).softmax(-1)
        chosen_BTE = self.choose(probs_BTE.detach(), ctx)
        if self.training:
            self.count(probs_BTE, chosen_BTE, ctx)
        return probs_BTE * chosen_BTE, chosen_BTE

    def choose(self, probs_BTE: Tensor, ctx: Context) -> Tensor:
        """Return each expert's best tokens: ⌈top_k · length / E⌉ of each document."""
        (B, T, E), device = probs_BTE.shape, probs_BTE.device
        order_BTE = probs_BTE.argsort(dim=1, descending=True, stable=True)
        place_T = torch.arange(T, device=device)
        if ctx.segments_BT is None:
            return torch.zeros_like(order_BTE, dtype=torch.bool).scatter_(
                1, order_BTE, (place_T < _quota(T, self.top_k, E))[:, None].expand(B, T, E)
            )
        # the second sort groups the tokens by document, with the best of each first
        segments_BTE = ctx.segments_BT[:, :, None].expand(B, T, E)
        order_BTE = order_BTE.gather(1, segments_BTE.gather(1, order_BTE).argsort(dim=1, stable=True))
        sorted_BT = ctx.segments_BT.sort(dim=1).values
        first_BT = torch.searchsorted(sorted_BT, sorted_BT)
        length_BT = torch.searchsorted(sorted_BT, sorted_BT, right=True) - first_BT
        taken_BT = place_T - first_BT < _quota(length_BT, self.top_k, E)
        return torch.zeros_like(order_BTE, dtype=torch.bool).scatter_(
            1, order_BTE, taken_BT[:, :, None].expand(B, T, E)
        )


def largest(scores: Tensor, k: int) -> Tensor:
    """Return where the `k` largest of the last dimension are, bool."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter_(-1, scores.topk(k, dim=-1).indices, True)


def counted(x_BTD: Tensor, ctx: Context) -> Tensor:
    """Return the tokens that losses and statistics count, bool (B, T, 1)."""

    def make() -> Tensor:
        counted_BT = ctx.counted_BT
        if counted_BT is None:
            counted_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
        return (counted_BT if ctx.segments_BT is None else counted_BT & (ctx.segments_BT != PAD))[:, :, None]

    return ctx.once("counted", make)


def _quota(length: int | Tensor, top_k: int, n_experts: int) -> int | Tensor:
    return (length * top_k + n_experts - 1) // n_experts


def _refuse_constant_weights(top_k: int, renormalise: bool) -> None:
    if top_k == 1 and renormalise:
        raise UserError(
            "With top_k=1 and renormalise=true every weight is 1, so the router can't learn: set the router's"
            " renormalise=false, or a larger top_k."
        )
