"""Hyper-parameter transfer: what is tuned at a base shape holds at other widths and depths (`model.transfer`).

Standard training has another best learning rate at each width, because updates and initial values move activations by
amounts that depend on the width. In the maximal update parametrisation (µP, 2203.03466) they don't, and in CompleteP
(2505.01618) not on the depth either. Both rules are functions of how each dimension of a parameter grew, and of the
parameter's role:

    parameter        grew                      forward pass        initial values
    embedding        one side, m               as at the base      with the base's scale
    head             one side, m               logits / m          with the base's scale
    matrix           fan-in r, fan-out s       as it is            as they are: 1/√fan-in; a router's / r
    vector           s                         as it is            as they are
    attention        head width m              scores / √m         –
    branch           depth d                   output / d          the writing matrix's · √d          (CompleteP alone)

The learning rate, weight decay and ε of each are in `minllm.training.transfer`. Growth is read off the shapes of the
same model at the base shape, so that a new mixer needs no rule of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from torch import nn
from torch.nn import Parameter

from minllm.errors import UserError
from minllm.model.norm import CosineNorm, ScaleNorm
from minllm.model.parameter import Draw, Growth, Role, scale_values, times, writers
from minllm.model.residual import Hyper, Scaled
from minllm.model.stack import Stack
from minllm.schema.options import Count

if TYPE_CHECKING:
    from minllm.model.lm import LM

Transfer = Literal["none", "mup", "completep"]


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base shape: the shape at which hyper-parameters were tuned, and at which transfer changes nothing.

    It is the configured model with another width, and its hidden widths in proportion. Other options, such as the
    number of heads, are the same.

    Args:
        dim: width of the residual stream.
        n_layers: number of layers, for CompleteP.
        n_heads: number of heads of every mixer; null means as configured, so that the width of a head grows.
    """

    dim: Count
    n_layers: Count
    n_heads: Count | None = None


def scale(model: LM, base: LM, transfer: Transfer, layers: float) -> None:
    """Scale a model that was just built, in place, for its growth over the base shape.

    Args:
        model: the model, not initialised yet.
        base: the same model at the base width and with as many layers.
        transfer: "mup" or "completep".
        layers: the number of layers divided by the base shape's.

    Raises:
        UserError: hyper-parameters of a part of this model don't transfer.
    """
    _refuse_fixed(model, base, transfer, layers)
    depth = layers if transfer == "completep" else 1.0
    in_branches = _parameters_in_branches(model)
    for param, of_base in zip(model.parameters(), base.parameters(), strict=True):
        fan_in, fan_out = _growth(param, of_base)
        growth = Growth(
            width=model.dim / base.dim,
            fan_in=fan_in,
            fan_out=fan_out,
            depth=depth if param in in_branches else 1.0,
        )
        param.role = replace(param.role, growth=growth, draw=_initial_values(param.role, growth))
    _scale_stream(model, base)
    # the factor makes up for the head's fan-in, so that it may be the embedding's matrix
    model.head_factor *= base.dim / model.dim
    role = model.head_weight_VD.role
    role = replace(role, growth=replace(role.growth, fan_in=1.0, fan_out=model.dim / base.dim))
    model.head_weight_VD.role = role
    for branch in _branches(model):
        branch.factor = 1 / depth
    for module, of_base in zip(model.modules(), base.modules(), strict=True):
        grew = _heads_growth(module, of_base)
        if grew != 1:
            module.scale = (module.scale or module.query_width**-0.5) * grew**-0.5


def _branches(model: LM) -> Iterator[nn.Module]:
    for layer in (*model.layers, *model.ahead):
        yield from layer.values()


def _parameters_in_branches(model: LM) -> set[Parameter]:
    return {param for branch in _branches(model) for param in branch.parameters()}


def _growth(param: Parameter, base: Parameter) -> tuple[float, float]:
    """Return how much a parameter's fan-in and fan-out grew."""
    ratios = [ours / theirs for ours, theirs in zip(param.shape, base.shape, strict=True)]
    if param.role.kind == "embedding":
        return 1.0, ratios[-1]
    if param.role.kind == "vector":
        return 1.0, math.prod(ratios)
    fan_in = ratios.pop(param.role.inputs)
    return fan_in, ratios[-1]


def _heads_growth(module: nn.Module, base: nn.Module) -> float:
    """Return how much wider the queries and keys of a module are; 1 if it has none."""
    return getattr(module, "query_width", 1) / getattr(base, "query_width", 1)


def _initial_values(role: Role, growth: Growth) -> Draw:
    # what writes the stream is drawn for the sum of all branches, and CompleteP divides that by the depth already
    factor = growth.depth**0.5 if role.stream == "writes" else 1.0
    if role.is_flat:
        factor /= growth.fan_in
    return times(factor, role.draw)


def _scale_stream(model: LM, base: LM) -> None:
    """Give the stream and the head the initial scale that they have at the base shape: it depends on the width."""
    grew = model.dim / base.dim
    for stack, of_base in zip(_stacks(model), _stacks(base), strict=True):
        stack.embedding_scale = of_base.embedding_scale
        if stack.embedding is not None:
            scale_values([stack.embedding], grew**0.5)
        scale_values(writers(stack.position), of_base.token_scale / stack.token_scale)
        for layer in (*stack.layers, *stack.ahead):
            scale_values(writers(layer), of_base.branch_scale / stack.branch_scale)
    if model.head is not None:
        scale_values([model.head.weight], grew**0.5)


def _stacks(model: LM) -> list[Stack]:
    return [module for module in model.modules() if isinstance(module, Stack)]


# ---- what doesn't transfer -----------------------------------------------------------------------


def _refuse_fixed(model: LM, base: LM, transfer: Transfer, layers: float) -> None:
    if _structure(model) != _structure(base):
        _refuse(
            transfer,
            "modules or parameters whose number depends on the width",
            "choose model.base.dim=model.dim",
        )
    if model.dim != base.dim:
        _refuse_width(model, base, transfer)
    if transfer == "completep" and layers != 1:
        if model.encoder is not None:
            _refuse(transfer, "an encoder", "remove model/encoder")
        if any(branch.norm is not None for branch in _branches(model)):
            _refuse(transfer, "norms on the residual stream, such as norm=post", "choose norm=pre")
        if any(isinstance(branch.residual, (Scaled, Hyper)) for branch in _branches(model)):
            _refuse(
                transfer,
                "model/residual=scaled and hyper, whose weights multiply the stream once per layer",
                "choose another model/residual",
            )
    for module, of_base in zip(model.modules(), base.modules(), strict=True):
        reason = getattr(module, "untransferable", None)
        if reason and any(
            _heads_growth(*parts) != 1 for parts in zip(module.modules(), of_base.modules(), strict=True)
        ):
            _refuse(transfer, f"{type(module).__name__} with wider heads: {reason}", "set its head_dim")


def _structure(model: LM) -> list[tuple[type, list[int]]]:
    return [(type(module), [p.ndim for p in module.parameters(recurse=False)]) for module in model.modules()]


def _refuse_width(model: LM, base: LM, transfer: Transfer) -> None:
    if model.parts is not None:
        _refuse(transfer, "an objective with parameters of its own", "choose another objective")
    if any(isinstance(module, (CosineNorm, ScaleNorm)) for module in model.modules()):
        _refuse(
            transfer, "norm.kind=cosine and l2, whose lengths depend on the width", "choose norm.kind=rms"
        )


def _refuse(transfer: Transfer, what: str, cure: str) -> None:
    raise UserError(f"model.transfer={transfer} has no rule for {what}. Type model.transfer=none, or {cure}.")
