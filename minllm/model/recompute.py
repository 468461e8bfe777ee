"""Activation checkpointing (1604.06174): what a backward pass needs of some branches is computed again, not stored.

Of each group of branches only the input is kept in the forward pass. In the backward pass the group is run again, which
takes a quarter to a third more time. torch draws the same dropout in it. A branch also changes what isn't its output,
and the second run changes copies of that:

    ctx.once        what branches share; the second run has what there was before the first one
    ctx.losses      auxiliary losses
    buffers         the statistics of experts
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from minllm.model.context import Context

Recompute = Literal["none", "branches", "layers"]
"""What is recomputed at a time: nothing, each branch, or each layer."""


def recomputed(branches: Sequence[nn.Module], stream: Tensor, ctx: Context) -> Tensor:
    """Return the stream after some branches, which the backward pass runs again instead of storing what it needs."""
    if torch.compiler.is_compiling():
        # compiled code can't have side effects in a checkpoint, and torch compiles nothing that is called in one
        return torch.compiler.disable(_checkpointed)(branches, stream, ctx)
    return _checkpointed(branches, stream, ctx)


def _checkpointed(branches: Sequence[nn.Module], stream: Tensor, ctx: Context) -> Tensor:
    # loading it takes as long as a short run's first steps
    from torch.utils.checkpoint import checkpoint

    return checkpoint(_twice(branches, ctx), stream, use_reentrant=False)


def _twice(branches: Sequence[nn.Module], ctx: Context) -> Callable[[Tensor], Tensor]:
    """Return a function that runs the branches with `ctx` when it is first called, and without side effects later."""
    before = ctx.copy()
    # forgotten after the first run: what the run adds to it refers to this function, and would never be freed
    first: Context | None = ctx
    del ctx

    def run(stream: Tensor) -> Tensor:
        nonlocal first
        context, first = first, None
        if context is not None:
            return functools.reduce(lambda x, branch: branch(x, context), branches, stream)
        again = before.copy()
        for branch in branches:
            buffers = {name: buffer.clone() for name, buffer in branch.named_buffers()}
            stream = torch.func.functional_call(branch, buffers, (stream, again))
        return stream

    return run
