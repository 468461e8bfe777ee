"""Parameters with a role and an initialisation.

A module declares what each of its parameters is (a matrix, a vector or an embedding; whether it reads or writes the
residual stream) and how its initial values are drawn. Nothing is matched by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.model.kernels.linear import LARGE, linear
from minllm.model.seed import generator

Kind = Literal["matrix", "vector", "embedding"]
Stream = Literal["reads", "writes", "within"]
Draw = Callable[[Tensor, torch.Generator], None]


@dataclass(frozen=True)
class Growth:
    """How much larger a parameter is than at the base shape of `model.transfer`; 1 everywhere without transfer."""

    width: float = 1.0
    """Of the model."""
    fan_in: float = 1.0
    """Of what is summed over in one of its outputs, as far as the forward pass doesn't make up for it."""
    fan_out: float = 1.0
    depth: float = 1.0
    """Of the number of layers, by which CompleteP divides the output of the branch that this parameter is in."""


@dataclass(frozen=True)
class Role:
    """A parameter's role in the model, used by optimizers, initialisation and reports."""

    kind: Kind
    stream: Stream = "within"
    draw: Draw = lambda value, generator: None
    parts: tuple[int, ...] = ()
    """Sizes along the first dimension of parts that are drawn like separate parameters."""
    active: float = 1.0
    """The fraction of tokens that use it: less than 1 in a mixture of experts."""
    inputs: int = -1
    """The dimension of a matrix that is summed over."""
    is_flat: bool = False
    """Whether the initial values of a matrix have the same scale at every width."""
    growth: Growth = Growth()

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, get_args(Kind)),
            ("stream", self.stream, get_args(Stream)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def parameter(
    *shape: int,
    kind: Kind,
    draw: Draw,
    stream: Stream = "within",
    parts=(),
    inputs: int = -1,
    is_flat: bool = False,
) -> nn.Parameter:
    """Return a parameter with a role. Its values are undefined until `initialise` draws them."""
    made = nn.Parameter(torch.empty(*shape))
    made.role = Role(kind, stream, draw, tuple(parts), inputs=inputs, is_flat=is_flat)
    return made


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every parameter from its own generator, seeded by `seed` and the parameter's path.

    Two models therefore have identical initial weights wherever they share a path and a shape. Values are drawn on the
    CPU, so they don't depend on the device.
    """
    for path, param in model.named_parameters():
        role: Role = param.role
        value = torch.empty(param.shape, dtype=torch.float32)
        for i, part in enumerate(value.split(role.parts) if role.parts else [value]):
            role.draw(part, generator(seed, f"{path}:{i}"))
        with torch.no_grad():
            param.copy_(value)


def normal(std: float) -> Draw:
    return lambda value, generator: value.normal_(0, std, generator=generator)


def times(factor: float, draw: Draw) -> Draw:
    """Multiply what `draw` draws by a number."""

    def multiplied(value: Tensor, generator: torch.Generator) -> None:
        draw(value, generator)
        value.mul_(factor)

    return draw if factor == 1 else multiplied


def scale_values(params: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply the initial values of parameters, which aren't drawn yet, by a number."""
    for param in params:
        param.role = replace(param.role, draw=times(factor, param.role.draw))


def writers(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that write the residual stream."""
    with_role = (param for param in module.parameters() if hasattr(param, "role"))  # others are refused later
    return [param for param in with_role if param.role.stream == "writes"]


def constant(number: float) -> Draw:
    return lambda value, generator: value.fill_(number)


def log_between(low: float, high: float) -> Draw:
    """Draw logarithms of numbers that are uniform between `low` and `high`."""
    return lambda value, generator: value.uniform_(low, high, generator=generator).log_()


def steps_between(low: float, high: float) -> Draw:
    """Draw b such that softplus(b) is log-uniform between `low` and `high`."""

    def draw(value: Tensor, generator: torch.Generator) -> None:
        step = value.uniform_(math.log(low), math.log(high), generator=generator).exp()
        value.copy_(step + torch.log(-torch.expm1(-step)))  # softplus, inverted

    return draw


class Linear(nn.Module):
    """y = x Wᵀ + b. Initial weights preserve the variance of the input, times `gain`².

    Args:
        is_flat: `gain` grows with √n_in, so that the initial weights have the same scale at every width.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        stream: Stream,
        bias: bool = False,
        gain: float = 1.0,
        parts=(),
        is_flat: bool = False,
    ):
        super().__init__()
        self.is_large = n_in * n_out >= LARGE
        draw = normal(gain / n_in**0.5)
        self.weight = parameter(
            n_out, n_in, kind="matrix", draw=draw, stream=stream, parts=parts, is_flat=is_flat
        )
        self.bias = parameter(n_out, kind="vector", draw=constant(0), stream=stream) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        # most are small: checking here saves a call when decoding
        return (linear if self.is_large else F.linear)(x, self.weight, self.bias)


class SplitLinear(Linear):
    """Several projections of one input by one matrix; returns one tensor per item of `parts`."""

    def __init__(self, n_in: int, parts: list[int], *, stream: Stream, bias: bool = False):
        super().__init__(n_in, sum(parts), stream=stream, bias=bias, parts=parts)
        self.parts = parts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # compiled for GPUs, the backward pass of a split is a concatenation that computes every part for every element
        if self.is_large and x.is_cuda and torch.compiler.is_compiling():
            biases = [None] * len(self.parts) if self.bias is None else self.bias.split(self.parts)
            return tuple(F.linear(x, w, b) for w, b in zip(self.weight.split(self.parts), biases))
        # one split, not several slices: its backward pass is a single concatenation
        return super().forward(x).split(self.parts, dim=-1)
