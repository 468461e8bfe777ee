"""Residual connections: who owns the stream that runs up the stack, and how branches read and write it."""

from __future__ import annotations

from torch import Tensor, nn

from minllm.model.context import Context, Layer


class Plain(nn.Module):
    """x + f(x) (1512.03385). The stream is the hidden vector itself.

    Other residuals inherit from this one and replace what they do differently. The model calls `start` and
    `finish` once, on an instance of its own; each branch owns another for its `read` and `write`.
    """

    def __init__(self, dim: int, layer: Layer):
        super().__init__()

    def start(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def read(self, stream: Tensor, ctx: Context) -> Tensor:
        return stream

    def write(self, stream: Tensor, y_BTD: Tensor, ctx: Context) -> Tensor:
        return stream + y_BTD

    def finish(self, stream: Tensor) -> Tensor:
        return stream
