"""Parameters that know their role and how they begin.

A module says what each of its parameters is (a matrix, a vector or an embedding; whether it reads or writes the
residual stream) and how its first values are drawn. Nothing is ever matched by name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["matrix", "vector", "embedding"]
Stream = Literal["reads", "writes", "within"]
Draw = Callable[[Tensor, torch.Generator], None]

FEW_ROWS, LARGE = 8, 1 << 18
"""The rows and the numbers in a matrix at which `linear` takes the other way round."""


@dataclass(frozen=True)
class Role:
    """What a parameter is to the model: optimizers, initialisation and reports ask for it."""

    kind: Kind
    stream: Stream = "within"
    draw: Draw = lambda value, generator: None
    parts: tuple[int, ...] = ()
    """Sizes along the first dimension that are drawn as if they were parameters of their own."""
    active: float = 1.0
    """The share of tokens that meet it: less than all where experts are chosen."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, get_args(Kind)),
            ("stream", self.stream, get_args(Stream)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def parameter(*shape: int, kind: Kind, draw: Draw, stream: Stream = "within", parts=()) -> nn.Parameter:
    """Return a parameter with a role. It holds no values until `initialise` draws them."""
    made = nn.Parameter(torch.empty(*shape))
    made.role = Role(kind, stream, draw, tuple(parts))
    return made


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every parameter from a generator of its own, seeded by `seed` and the parameter's path.

    Two models therefore start with identical weights wherever they share a path and a shape, whatever else they
    differ in. Values are drawn on the CPU, so that they do not depend on the device.
    """
    for path, param in model.named_parameters():
        role: Role = param.role
        value = torch.empty(param.shape, dtype=torch.float32)
        for i, part in enumerate(value.split(role.parts) if role.parts else [value]):
            role.draw(part, _generator(seed, f"{path}:{i}"))
        with torch.no_grad():
            param.copy_(value)


def normal(std: float) -> Draw:
    return lambda value, generator: value.normal_(0, std, generator=generator)


def constant(number: float) -> Draw:
    return lambda value, generator: value.fill_(number)


def log_between(low: float, high: float) -> Draw:
    """Draw logarithms of numbers that lie evenly between two."""
    return lambda value, generator: value.uniform_(low, high, generator=generator).log_()


def steps_between(low: float, high: float) -> Draw:
    """Draw the b of a step softplus(b), such that steps lie between two, evenly by their logarithm."""

    def draw(value: Tensor, generator: torch.Generator) -> None:
        step = value.uniform_(math.log(low), math.log(high), generator=generator).exp()
        value.copy_(step + torch.log(-torch.expm1(-step)))  # softplus, inverted

    return draw


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b, as `torch.nn.functional.linear` does, and faster for the few rows that decoding has.

    On CPUs a product of one to eight rows with a large matrix takes two to four times as long as W xᵀ, whose many rows
    keep all cores busy; a single row is taken twice, since torch would treat W xᵀ as a product with a vector.
    """
    if torch.is_grad_enabled() or weight.numel() < LARGE or x.device.type != "cpu" or x.dtype != weight.dtype:
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    if rows > FEW_ROWS:
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1).repeat(2 if rows == 1 else 1, 1).T
    y = (weight @ columns).T[:rows].contiguous().view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


class Linear(nn.Module):
    """y = x Wᵀ + b. Weights start at the scale that keeps a unit-variance input's variance, times `gain`."""

    def __init__(
        self, n_in: int, n_out: int, *, stream: Stream, bias: bool = False, gain: float = 1.0, parts=()
    ):
        super().__init__()
        self.is_large = n_in * n_out >= LARGE
        draw = normal(gain / n_in**0.5)
        self.weight = parameter(n_out, n_in, kind="matrix", draw=draw, stream=stream, parts=parts)
        self.bias = parameter(n_out, kind="vector", draw=constant(0), stream=stream) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        # most are small: asking here spares their decoding a call
        return (linear if self.is_large else F.linear)(x, self.weight, self.bias)


class SplitLinear(Linear):
    """Several projections of one input in one matrix product; returns one tensor for each of `parts`."""

    def __init__(self, n_in: int, parts: list[int], *, stream: Stream, bias: bool = False):
        super().__init__(n_in, sum(parts), stream=stream, bias=bias, parts=parts)
        self.parts = parts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # one split, not several slices: its backward pass is a single concatenation
        return super().forward(x).split(self.parts, dim=-1)


def _generator(seed: int, path: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
