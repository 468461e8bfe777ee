"""The head and its cross-entropy in one step, for GPUs: large chunks, nothing that waits for the device.

Like `minllm.objective.cross_entropy`, this computes the gradient in the forward pass and never stores the B·T·V logits
in full. A chunk is as many rows as keep a GPU busy. Each is three matrix products, and a kernel that replaces the
logits by their gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable

from minllm.data.batches import IGNORED
from minllm.model.kernels import own

LOGITS = 1 << 29
"""The largest number of logits of a chunk: 1 GiB in bf16."""

PLAIN_SHARE = 8
"""Without the kernel there are five to seven copies in fp32, so chunks are this many times smaller."""

ALIGNED_TO = 64
"""The vocabulary is padded to a multiple of this: tensor cores need aligned rows."""


def head_cross_entropy_on_gpu(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
    weights_N: Tensor | None = None,
    each_N: Tensor | None = None,
    right_N: Tensor | None = None,
) -> Tensor:
    """Return the summed cross-entropy in nats; see `minllm.objective.cross_entropy.head_cross_entropy`."""
    if torch.is_autocast_enabled(x_ND.device.type):
        x_ND = x_ND.to(torch.get_autocast_dtype(x_ND.device.type))
    if not torch.is_grad_enabled():  # needs_input_grad is true for parameters even under no_grad
        x_ND, weight_VD = x_ND.detach(), weight_VD.detach()
    total, losses_N = _HeadCrossEntropy.apply(
        x_ND, weight_VD, bias_V, targets_N, weights_N, softcap, z_loss, right_N
    )
    if each_N is not None:
        each_N.copy_(losses_N)
    return total


def rows_per_chunk(vocab_size: int) -> int:
    """Return the largest power of two of rows whose logits fit into a chunk, and at least 128."""
    logits = LOGITS if own.WHY_NOT is None else LOGITS // PLAIN_SHARE
    return max(128, 1 << (logits // vocab_size).bit_length() - 1)


class _HeadCrossEntropy(torch.autograd.Function):
    """Takes the weight in its own precision, so that its gradient is added up and returned in that precision."""

    @staticmethod
    def forward(
        ctx,
        x_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor | None,
        softcap: float | None,
        z_loss: float,
        right_N: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        learning = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        V, rows = len(weight_VD), rows_per_chunk(len(weight_VD))
        counted_N1 = (targets_N != IGNORED)[:, None]
        factor_N1 = (
            counted_N1.float() if weights_N is None else torch.where(counted_N1, weights_N[:, None], 0)
        )
        losses, dxs, dweight_PD, dbias_P = [], [], None, None  # P: V padded to a multiple of ALIGNED_TO
        with torch.autocast(x_ND.device.type, enabled=False):
            weight_PD = F.pad(weight_VD.to(x_ND.dtype), (0, 0, 0, -V % ALIGNED_TO))
            bias_P = None if bias_V is None else F.pad(bias_V.to(x_ND.dtype), (0, -V % ALIGNED_TO))
            for start in range(0, len(x_ND), rows):
                x_CD, targets_C, factor_C1 = (t[start : start + rows] for t in (x_ND, targets_N, factor_N1))
                right_C = None if right_N is None else right_N[start : start + rows]
                losses_C, dlogits_CP = _chunk(
                    x_CD, weight_PD, bias_P, targets_C, factor_C1, V, softcap, z_loss, learning, right_C
                )
                losses.append(losses_C)
                if learning:
                    dxs.append(dlogits_CP @ weight_PD)
                    # a row that doesn't count may hold NaN, which a factor of 0 doesn't remove
                    product_PD = dlogits_CP.T @ torch.where(factor_C1 != 0, x_CD, 0)
                    dweight_PD = _sum(dweight_PD, product_PD)
                    dbias_P = None if bias_P is None else _sum(dbias_P, dlogits_CP.float().sum(0))
                del dlogits_CP  # before the next chunk's logits are allocated
        losses_N = torch.cat(losses)
        if learning:
            dbias_V = None if dbias_P is None else dbias_P[:V].to(bias_V.dtype)
            ctx.save_for_backward(torch.cat(dxs), dweight_PD[:V].to(weight_VD.dtype), dbias_V)
        ctx.mark_non_differentiable(losses_N)
        return losses_N.sum(), losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx, dtotal: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        dx_ND, dweight_VD, dbias_V = ctx.saved_tensors
        dbias_V = None if dbias_V is None else dbias_V * dtotal
        return dx_ND * dtotal, dweight_VD * dtotal, dbias_V, None, None, None, None, None


def _chunk(
    x_CD: Tensor,
    weight_PD: Tensor,
    bias_P: Tensor | None,
    targets_C: Tensor,
    factor_C1: Tensor,
    V: int,
    softcap: float | None,
    z_loss: float,
    learning: bool,
    right_C: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Return each row's loss and the gradient of the logits if `learning`, (C, P).

    Whether each row's target is the most probable token is written to `right_C`, if it is given.
    """
    logits_CP = F.linear(x_CD, weight_PD, bias_P)
    cross_entropy = plain_cross_entropy
    if own.WHY_NOT is None and logits_CP.is_cuda:
        # the first call of a custom operation loads the compiler, which takes seconds
        cross_entropy = fused_operation if torch.compiler.is_compiling() else fused_cross_entropy
    losses_C, is_right_C = cross_entropy(
        logits_CP, targets_C, factor_C1[:, 0], V, softcap, z_loss, learning, right_C is not None
    )
    if right_C is not None:
        right_C.copy_(is_right_C)
    return losses_C, logits_CP if learning else None


def fused_cross_entropy(
    logits_CP: Tensor,
    targets_C: Tensor,
    factor_C: Tensor,
    vocab_size: int,
    softcap: float | None,
    z_loss: float,
    learning: bool,
    wants_right: bool,
) -> tuple[Tensor, Tensor]:
    """Return each row's loss, times its factor; if `learning`, replace the logits by the gradient of the losses' sum.

    The second value is whether each row's target is the most probable token, or empty unless `wants_right`.
    """
    losses_C, right_C = _results(
        logits_CP, targets_C, factor_C, vocab_size, softcap, z_loss, learning, wants_right
    )
    if not isinstance(logits_CP, FakeTensor):  # which have no values; with them, memory is predicted
        from minllm.model.kernels.cross_entropy import launch  # needs Triton

        launch(logits_CP, targets_C, factor_C, losses_C, right_C, vocab_size, softcap, z_loss, learning)
    return losses_C, right_C


def _results(logits_CP, targets_C, factor_C, vocab_size, softcap, z_loss, learning, wants_right):
    """Allocate what the kernel returns."""
    C = logits_CP.shape[0]
    right_C = logits_CP.new_empty(C if wants_right else 0, dtype=torch.bool)
    return logits_CP.new_empty(C, dtype=torch.float32), right_C


fused_operation = torch.library.custom_op(
    "minllm::cross_entropy", fused_cross_entropy, mutates_args={"logits_CP"}
)
"""The same for compiled code, which can't be traced through the launch of a kernel."""
fused_operation.register_fake(_results)


def plain_cross_entropy(
    logits_CP: Tensor,
    targets_C: Tensor,
    factor_C: Tensor,
    vocab_size: int,
    softcap: float | None,
    z_loss: float,
    learning: bool,
    wants_right: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the same as `fused_cross_entropy` in plain torch."""
    raw_CP, factor_C1 = logits_CP, factor_C[:, None]
    tokens_P = torch.arange(raw_CP.shape[1], device=raw_CP.device)
    logits_CP = raw_CP.float()
    if softcap is not None:
        tanh_CP = torch.tanh(logits_CP / softcap)
        logits_CP = softcap * tanh_CP
    logits_CP = torch.where(tokens_P < vocab_size, logits_CP, -torch.inf)
    max_C1 = logits_CP.amax(-1, keepdim=True)
    log_z_C1 = max_C1 + (logits_CP - max_C1).exp().sum(-1, keepdim=True).log()
    losses_C1 = log_z_C1 - logits_CP.gather(1, targets_C[:, None].clamp(min=0))
    losses_C1 = losses_C1 + z_loss * log_z_C1.square()
    losses_C = torch.where(factor_C1 != 0, losses_C1 * factor_C1, 0)[:, 0]
    right_C = logits_CP.argmax(-1) == targets_C if wants_right else targets_C.new_empty(0, dtype=torch.bool)
    if learning:
        # d loss / d logits = p − one-hot(target), and d (ln z)² / d logits = 2 ln z · p
        p_CP = (logits_CP - log_z_C1).exp() * (1 + 2 * z_loss * log_z_C1)
        dlogits_CP = (p_CP - (tokens_P == targets_C[:, None]).float()) * factor_C1
        if softcap is not None:
            dlogits_CP = dlogits_CP * (1 - tanh_CP.square())
        raw_CP.copy_(torch.where(factor_C1 != 0, dlogits_CP, 0))
    return losses_C, right_C


def _sum(total: Tensor | None, added: Tensor) -> Tensor:
    """Add in fp32."""
    return added.float() if total is None else total.add_(added)
