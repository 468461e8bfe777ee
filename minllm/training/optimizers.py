"""Optimizers: `optim(model, *, lr, ...)`, with parameters grouped by the roles that the model assigned.

They differ in their update rules; weight decay is the same for all and implemented in `Optimizer`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim._muon import muon

from minllm.errors import UserError
from minllm.model.lm import LM
from minllm.model.parameter import Growth
from minllm.schema.options import BelowOne, NonNegative, Positive
from minllm.training.parallel import full, is_sharded, shard_of
from minllm.training.transfer import Rule, epsilon, of_gradients, of_orthogonal, of_signs

_Torch = torch.optim.Optimizer


class Optimizer(_Torch):
    """torch's Optimizer with decoupled weight decay (1711.05101): w ← w - lr · decay · w, apart from `move`.

    Matrices decay, and embeddings if `decay_embeddings` is true; norms, biases and gains never. With `cautious_decay`
    (2510.12402), a weight decays only in steps whose update doesn't move it away from zero.

    torch wraps an optimizer's methods to exclude them from `torch.compile`. The wrappers import the compiler, which
    takes two seconds before the first step. These optimizers are never compiled, so the wrappers are removed here.
    """

    add_param_group = inspect.unwrap(_Torch.add_param_group)
    zero_grad = inspect.unwrap(_Torch.zero_grad)
    state_dict = inspect.unwrap(_Torch.state_dict)
    load_state_dict = inspect.unwrap(_Torch.load_state_dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient, including weight decay."""
        decaying = [group for group in self.param_groups if group["decay"] and learning(group)]
        before = {p: p.clone() for group in decaying if group["cautious"] for p in learning(group)}
        for group in decaying:
            if not group["cautious"]:
                torch._foreach_mul_(learning(group), 1 - group["lr"] * group["decay"])
        self.move()
        for group in decaying:
            for p in learning(group) if group["cautious"] else ():
                # the sign, because a product of tiny numbers would underflow
                shrinks = (before[p] - p).mul_(before[p].sign()) >= 0
                p.sub_(before[p].mul_(shrinks), alpha=group["lr"] * group["decay"])

    def move(self) -> None:
        """Update each parameter that has a gradient, without weight decay."""
        raise NotImplementedError


class _AdamW(Optimizer, torch.optim.AdamW):
    move = inspect.unwrap(torch.optim.AdamW.step)


class AdamW(_AdamW):
    """torch's fused AdamW (1711.05101)."""

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: Positive,
        weight_decay: NonNegative,
        beta1: BelowOne,
        beta2: BelowOne,
        eps: Positive,
        decay_embeddings: bool,
        cautious_decay: bool,
    ):
        groups = grouped(
            model.parameters(), weight_decay, decay_embeddings, cautious_decay, rule=of_signs, eps=eps
        )
        super().__init__(
            groups, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=0.0, fused=has_fused(model)
        )


class Muon(Optimizer):
    """Muon: a matrix moves along its momentum, orthogonalised by five Newton-Schulz steps.

    Used for the matrices between the embedding and the head. AdamW updates the rest: embeddings, vectors, the head, and
    parameters with more than two dimensions. Muon's updates are scaled to the size of AdamW's (2502.16982), so both
    use the same learning rate and weight decay.
    """

    def __init__(
        self,
        model: LM,
        *,
        lr: Positive,
        weight_decay: NonNegative,
        momentum: BelowOne,
        nesterov: bool,
        beta1: BelowOne,
        beta2: BelowOne,
        eps: Positive,
        decay_embeddings: bool,
        cautious_decay: bool,
    ):
        self.momentum, self.nesterov = momentum, nesterov

        def is_inner(p: nn.Parameter) -> bool:
            return p.role.kind == "matrix" and p.ndim == 2 and p is not model.head_weight_VD

        inner = [p for p in model.parameters() if is_inner(p)]
        rest = [p for p in model.parameters() if not is_inner(p)]
        self.adamw = _AdamW(
            grouped(rest, weight_decay, decay_embeddings, cautious_decay, rule=of_signs, eps=eps),
            lr=lr,
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=0.0,
            fused=has_fused(model),
        )
        groups = grouped(inner, weight_decay, decay_embeddings, cautious_decay, rule=of_orthogonal)
        super().__init__([*groups, *self.adamw.param_groups], {"lr": lr})

    def move(self) -> None:
        # loading a checkpoint replaces groups and state, so AdamW borrows the current ones for the step
        n = len(self.adamw.param_groups)
        self.adamw.param_groups, self.adamw.state = self.param_groups[-n:], self.state
        self.adamw.move()
        for group in self.param_groups[:-n]:
            for p in learning(group):
                self.orthogonal_step(p, group["lr"])

    def orthogonal_step(self, p: nn.Parameter, lr: float) -> None:
        momentum = momentum_of(self, p)
        # a shard isn't orthogonal because the matrix is: every process computes the whole step
        matrix, gradient, whole_momentum = full(p.detach()), full(p.grad), full(momentum)
        # projections share a matrix only for speed: each is orthogonalised separately
        parts = p.role.parts or [len(p)]
        muon(
            list(matrix.split(parts)),
            list(gradient.split(parts)),
            list(whole_momentum.split(parts)),
            lr=lr,
            weight_decay=0.0,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_coefficients=(3.4445, -4.7750, 2.0315),
            ns_steps=5,
            eps=1e-7,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )
        if is_sharded(p):
            p.copy_(shard_of(matrix, p))
            momentum.copy_(shard_of(whole_momentum, p))


class Lion(Optimizer):
    """Lion (2302.06675): each weight moves by lr in the direction of the sign of an average of the gradients."""

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: Positive,
        weight_decay: NonNegative,
        beta1: BelowOne,
        beta2: BelowOne,
        decay_embeddings: bool,
        cautious_decay: bool,
    ):
        self.beta1, self.beta2 = beta1, beta2
        groups = grouped(model.parameters(), weight_decay, decay_embeddings, cautious_decay, rule=of_signs)
        super().__init__(groups, {"lr": lr})

    def move(self) -> None:
        for group in self.param_groups:
            for p in learning(group):
                momentum = momentum_of(self, p)
                p.sub_(momentum.lerp(p.grad, 1 - self.beta1).sign_(), alpha=group["lr"])
                momentum.lerp_(p.grad, 1 - self.beta2)


class SGD(Optimizer, torch.optim.SGD):
    """torch's fused SGD with momentum and decoupled weight decay (SGDW, 1711.05101)."""

    move = inspect.unwrap(torch.optim.SGD.step)

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: Positive,
        weight_decay: NonNegative,
        momentum: BelowOne,
        nesterov: bool,
        decay_embeddings: bool,
        cautious_decay: bool,
    ):
        if nesterov and not momentum:
            raise UserError(
                "optim.nesterov=true needs momentum, but optim.momentum is 0. Increase it, or type"
                " optim.nesterov=false."
            )
        groups = grouped(
            model.parameters(), weight_decay, decay_embeddings, cautious_decay, rule=of_gradients
        )
        # torch has no fused SGD for sharded parameters
        fused = None if any(map(is_sharded, model.parameters())) else has_fused(model)
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)


def grouped(
    params: Iterable[nn.Parameter],
    weight_decay: float,
    decay_embeddings: bool,
    cautious_decay: bool,
    *,
    rule: Rule | None = None,
    eps: float | None = None,
) -> list[dict]:
    """Return parameter groups with and without weight decay, omitting empty ones.

    With `model.transfer`, parameters whose learning rates have other factors form groups of their own.

    Args:
        rule: how the learning rate transfers; None means that it can't.
        eps: Adam's ε, if the optimizer has one.

    Raises:
        UserError: the model transfers hyper-parameters, but this optimizer has no rule.
    """
    kinds = {"matrix", "embedding"} if decay_embeddings else {"matrix"}
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for p in params:
        if rule is None and p.role.growth != Growth():
            raise UserError(
                "This optimizer has no rule for model.transfer: type model.transfer=none, or call `grouped` with a rule"
                " of minllm.training.transfer."
            )
        factors = (rule(p) if rule else 1.0, epsilon(p) if eps is not None else 1.0)
        groups.setdefault((p.role.kind not in kinds, *factors), []).append(p)
    return [
        {
            "params": members,
            "decay": 0.0 if is_exempt else weight_decay / lr_factor,
            "cautious": cautious_decay,
            **({"lr_factor": lr_factor} if lr_factor != 1 else {}),
            **({"eps": eps * eps_factor} if eps_factor != 1 else {}),
        }
        for (is_exempt, lr_factor, eps_factor), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def learning(group: dict) -> list[nn.Parameter]:
    """Return the group's parameters that have a gradient; the others are neither updated nor decayed."""
    return [p for p in group["params"] if p.grad is not None]


def momentum_of(optimizer: Optimizer, p: nn.Parameter) -> Tensor:
    state = optimizer.state[p]
    if not state:
        state["momentum"] = torch.zeros_like(p)
    return state["momentum"]


def has_fused(model: nn.Module) -> bool | None:
    """Return True if torch has fused kernels for the model's device; None lets torch choose."""
    return True if next(model.parameters()).device.type in ("cpu", "cuda", "mps") else None


LIKE_PARAMETER = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum", "momentum_buffer"}
"""State that fused kernels access with the parameter's shape, without checking its own."""


def wrong_state(optimizer: _Torch, state: object) -> str | None:
    """Return why a saved state doesn't fit this optimizer; None if it does."""
    own = optimizer.state_dict()
    if not isinstance(state, dict) or state.keys() != own.keys() or not isinstance(state["state"], dict):
        return "it isn't an optimizer's state"
    groups, known = state["param_groups"], own["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(known):
        return f"it doesn't have {len(known)} groups of parameters"
    for group, expected in zip(groups, known):
        if not isinstance(group, dict) or group.keys() != expected.keys():
            return "a parameter group has different options than this optimizer's"
        if group["params"] != expected["params"]:
            return "its groups have different parameters"
        if odd := [name for name, value in group.items() if not alike(value, expected[name])]:
            return f"{odd[0]} of a group has a value of the wrong type"
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, kept in state["state"].items():
        if not isinstance(index, int) or not 0 <= index < len(params) or not isinstance(kept, dict):
            return "it has state for a parameter that doesn't exist"
        for name, value in kept.items():
            if not is_state(name, value, params[index]):
                return f"{name} of parameter {index} doesn't fit the parameter"
    for group in groups:
        if len({frozenset(state["state"].get(index, ())) for index in group["params"]} - {frozenset()}) > 1:
            return "parameters of one group have different kinds of state"
    return None


def alike(value: object, expected: object) -> bool:
    """Whether a saved option of a group has a type compatible with the expected one."""
    if isinstance(expected, (tuple, list)):
        return isinstance(value, (tuple, list)) and list(map(type, value)) == list(map(type, expected))
    if isinstance(expected, (int, float)) and not isinstance(expected, bool):
        return isinstance(value, (int, float, Tensor))
    return value is None or expected is None or isinstance(value, type(expected))


def is_state(name: str, value: object, p: nn.Parameter) -> bool:
    if name in LIKE_PARAMETER and value is not None:
        is_dense = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
        return is_dense and value.shape == p.shape and (value.is_contiguous() or value.stride() == p.stride())
    if name == "step":
        return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0)
    return True
