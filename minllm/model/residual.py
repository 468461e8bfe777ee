"""Residual connections: how branches read and write the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Layer
from minllm.model.parameter import Draw, constant, parameter
from minllm.model.precision import in_fp32
from minllm.schema.options import Count, Positive


class Plain(nn.Module):
    """x + f(x) (1512.03385). The stream is the hidden vector itself.

    This is the base class of all residuals. Each branch has an instance for its `read` and `write`; the first branch's
    is also used for `start` and `finish`.
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


class Scaled(Plain):
    """a x + b f(x), and with `inject` + c x₀, the embedded token. Each branch has its own learned scalars.

    They are initialised to 1, 1 and 0, as in the NanoGPT speed runs.
    """

    def __init__(self, dim: int, layer: Layer, *, inject: bool):
        super().__init__(dim, layer)
        self.keep = parameter(1, kind="vector", draw=constant(1))
        self.gain = parameter(1, kind="vector", draw=constant(1))
        self.x0_gain = parameter(1, kind="vector", draw=constant(0)) if inject else None

    def write(self, stream: Tensor, y_BTD: Tensor, ctx: Context) -> Tensor:
        stream = self.keep * stream + self.gain * y_BTD
        return stream if self.x0_gain is None else stream + self.x0_gain * ctx.x0_BTD


class LayerScale(Plain):
    """x + g ∘ f(x), with a learned gain per channel that is initially small (2103.17239)."""

    def __init__(self, dim: int, layer: Layer, *, init: Positive):
        super().__init__(dim, layer)
        self.gain = parameter(dim, kind="vector", draw=constant(init))

    def write(self, stream: Tensor, y_BTD: Tensor, ctx: Context) -> Tensor:
        return stream + self.gain * y_BTD


class ReZero(Plain):
    """x + g f(x) with one learned gain, initially zero, so that each branch starts as the identity (2003.04887)."""

    def __init__(self, dim: int, layer: Layer):
        super().__init__(dim, layer)
        self.gain = parameter(1, kind="vector", draw=constant(0))

    def write(self, stream: Tensor, y_BTD: Tensor, ctx: Context) -> Tensor:
        return stream + self.gain * y_BTD


class DeepNorm(Plain):
    """α x + f(x) with α = (2N)^¼ for 2N branches, under a norm on the stream (2203.00555).

    The paper scales two matrices of each branch by (8N)^-¼, together (8N)^-½. Here, as for all residuals, the matrix
    that writes the stream is scaled by (2N)^-½, twice that.
    """

    def __init__(self, dim: int, layer: Layer):
        super().__init__(dim, layer)
        if not layer.norms.residual:
            raise UserError(
                "model/residual=deepnorm enlarges the stream at each branch, so it needs a norm on the stream:"
                " add norm=post (or norm.residual=true)."
            )
        self.alpha = layer.branches**0.25

    def write(self, stream: Tensor, y_BTD: Tensor, ctx: Context) -> Tensor:
        return self.alpha * stream + y_BTD


class TwoHop(Plain):
    """All branches of a layer after the first add to the layer's input, as in Megalodon (2404.08801).

        y = x + mixer(x)        x' = x + mlp(y)

    The stream is two tensors: the layer's input and the output of its latest branch.
    """

    def __init__(self, dim: int, layer: Layer):
        super().__init__(dim, layer)
        if layer.norms.residual:
            raise UserError(
                "model/residual=two_hop adds to a layer's input, which a norm on the stream would change:"
                " use norm=pre, or another without norm.residual."
            )
        self.is_first = layer.place == 0

    def start(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.expand(2, *x_BTD.shape)

    def read(self, stream: Tensor, ctx: Context) -> Tensor:
        return stream[1]

    def write(self, stream: Tensor, y_BTD: Tensor, ctx: Context) -> Tensor:
        began_BTD = stream[1 if self.is_first else 0]
        return torch.stack([began_BTD, began_BTD + y_BTD])

    def finish(self, stream: Tensor) -> Tensor:
        return stream[1]


class Hyper(Plain):
    """Hyper-connections (2409.19606): `lanes` parallel streams, mixed by weights that depend on their contents.

        stream (L lanes) ──┬── Σ a_l x_l ──► f ──► y
                           │                       │
                           └── lanes mix (L × L) ──┴─ + b_l y ──► stream

    Each weight is a learned scalar plus 0.01 tanh of the normed lane's product with a learned vector. Initially the
    vectors are zero, lane l is read by every L-th layer, all lanes are written and none are mixed: the plain residual.
    Finally the lanes are averaged; the paper adds them, which is equivalent before a final norm.
    """

    def __init__(self, dim: int, layer: Layer, *, lanes: Count):
        super().__init__(dim, layer)
        L = self.lanes = lanes
        self.norm = layer.norms.make(dim)
        self.reads_L = parameter(L, kind="vector", draw=_one_hot(layer.index % L))
        self.mixes_LL = parameter(L, L, kind="vector", draw=_identity)
        self.writes_L = parameter(L, kind="vector", draw=constant(1))
        # for each lane: its read weight, its L mixing weights and its write weight
        self.dynamic_DM = parameter(dim, L + 2, kind="matrix", draw=constant(0), stream="reads", inputs=0)

    def start(self, x_BTD: Tensor) -> Tensor:
        return x_BTD[..., None, :].expand(*x_BTD.shape[:-1], self.lanes, -1)

    def read(self, stream: Tensor, ctx: Context) -> Tensor:
        reads_BTL = self.reads_L + self._dynamic(stream, self.dynamic_DM[:, :1])[..., 0]
        # in fp32, as all products with the stream here: rounding would accumulate over the branches
        return in_fp32(torch.matmul, reads_BTL[..., None, :], stream)[..., 0, :]

    def write(self, stream: Tensor, y_BTD: Tensor, ctx: Context) -> Tensor:
        mixes_BTLL, writes_BTL1 = self._dynamic(stream, self.dynamic_DM[:, 1:]).split([self.lanes, 1], dim=-1)
        mixed_BTLD = in_fp32(torch.matmul, (self.mixes_LL + mixes_BTLL).mT, stream)
        return mixed_BTLD + (self.writes_L[:, None] + writes_BTL1) * y_BTD[..., None, :]

    def finish(self, stream: Tensor) -> Tensor:
        return stream.mean(dim=-2)

    def _dynamic(self, stream: Tensor, weight_DM: Tensor) -> Tensor:
        return 0.01 * torch.tanh(self.norm(stream) @ weight_DM)


def _one_hot(place: int) -> Draw:
    def draw(value: Tensor, generator: torch.Generator) -> None:
        value.zero_()[place] = 1

    return draw


def _identity(value: Tensor, generator: torch.Generator) -> None:
    value.copy_(torch.eye(len(value)))
