"""The elementwise linear recurrence h_t = a_t h_(t-1) + b_t."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from minllm.model.kernels.own import own_kernels
from minllm.model.precision import in_fp32


def linear_scan(a_BT: Tensor, b_BT: Tensor, h0_B: Tensor | None, *, pairs: bool = False) -> Tensor:
    """Return h_t = a_t h_(t-1) + b_t for all t, in the shape of `b_BT`, (B, T, …).

    Computed by one fused multiply-add per token over all rows and channels. On CPUs this is faster than an associative
    scan, which has fewer steps but more passes over memory; on GPUs it is a Triton kernel
    (`minllm.model.kernels.scan`). torch.compile sees a single operation.

    Args:
        a_BT: the factors, (B, T, …); dimensions of size 1 after time are broadcast.
        b_BT: the added terms, (B, T, …).
        h0_B: h before the first token, (B, …); None means 0.
        pairs: the last dimension holds the real and imaginary parts of complex numbers. torch.compile generates no code
            for complex tensors, so they exist only inside the operation.
    """
    return in_fp32(partial(_linear_scan, pairs=pairs), a_BT, b_BT, h0_B)


@torch.library.custom_op("minllm::linear_scan", mutates_args=())
def _linear_scan(a_BT: Tensor, b_BT: Tensor, h0_B: Tensor | None, pairs: bool) -> Tensor:
    a_BT, b_BT, h0_B = (_numbers(x, pairs) for x in (a_BT, b_BT, h0_B))
    if kernels := own_kernels("scan", a_BT, b_BT, h0_B):
        return _parts(kernels.scan(a_BT, b_BT, h0_B), pairs)
    h_BT = torch.empty_like(b_BT, memory_format=torch.contiguous_format)
    _scan(zip(a_BT.unbind(1), b_BT.unbind(1), h_BT.unbind(1)), h0_B)
    return _parts(h_BT, pairs)


@torch.library.custom_op("minllm::linear_scan_backward", mutates_args=())
def _linear_scan_backward(
    dh_BT: Tensor, a_BT: Tensor, h_BT: Tensor, h0_B: Tensor | None, pairs: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a, b and h0: the same recurrence, backwards in time."""
    dh_BT, a_BT, h_BT, h0_B = (_numbers(x, pairs) for x in (dh_BT, a_BT, h_BT, h0_B))
    if kernels := own_kernels("scan", dh_BT, a_BT, h_BT, h0_B):
        da_BT, db_BT, dh0_B = kernels.scan_backward(dh_BT, a_BT, h_BT, h0_B)
        return _parts(da_BT, pairs), _parts(db_BT, pairs), _parts(dh0_B, pairs)
    db_BT = torch.empty_like(h_BT)
    # the gradient at token t is propagated by the factor of the token after it
    a_later = [torch.zeros_like(a_BT[:, 0]), *a_BT.conj().unbind(1)[:0:-1]]
    _scan(zip(a_later, dh_BT.unbind(1)[::-1], db_BT.unbind(1)[::-1]), None)
    earlier_BT = torch.empty_like(h_BT)
    earlier_BT[:, 1:] = h_BT[:, :-1]
    earlier_BT[:, 0] = 0 if h0_B is None else h0_B
    da_BT = (db_BT * earlier_BT.conj()).sum_to_size(a_BT.shape)
    dh0_B = a_BT[:, 0].conj() * db_BT[:, 0]
    return _parts(da_BT, pairs), _parts(db_BT, pairs), _parts(dh0_B, pairs)


def _numbers(x: Tensor | None, pairs: bool) -> Tensor | None:
    return x if x is None or not pairs else torch.view_as_complex(x.contiguous())


def _parts(x: Tensor, pairs: bool) -> Tensor:
    return torch.view_as_real(x) if pairs else x


def _scan(steps: Iterable[tuple[Tensor, Tensor, Tensor]], h_B: Tensor | None) -> None:
    """Compute a h + b for each step (a, b, output)."""
    for a_B, b_B, out_B in steps:
        h_B = out_B.copy_(b_B) if h_B is None else torch.addcmul(b_B, a_B, h_B, out=out_B)


@_linear_scan.register_fake
def _(a_BT: Tensor, b_BT: Tensor, h0_B: Tensor | None, pairs: bool) -> Tensor:
    return torch.empty_like(b_BT, memory_format=torch.contiguous_format)


@_linear_scan_backward.register_fake
def _(
    dh_BT: Tensor, a_BT: Tensor, h_BT: Tensor, h0_B: Tensor | None, pairs: bool
) -> tuple[Tensor, Tensor, Tensor]:
    da_BT = torch.empty_like(a_BT, memory_format=torch.contiguous_format)
    return da_BT, torch.empty_like(h_BT), torch.empty_like(h_BT[:, 0])


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    a_BT, _, h0_B, ctx.pairs = inputs
    ctx.save_for_backward(a_BT, output, h0_B)


def _backward(ctx, dh_BT: Tensor) -> tuple[Tensor | None, ...]:
    *saved, h0_B = ctx.saved_tensors
    da_BT, db_BT, dh0_B = _linear_scan_backward(dh_BT, *saved, h0_B, ctx.pairs)
    return da_BT, db_BT, None if h0_B is None else dh0_B, None


_linear_scan.register_autograd(_backward, setup_context=_save)
