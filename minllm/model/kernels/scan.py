"""The elementwise linear recurrence as Triton kernels: one pass over memory in each direction.

Importing this module needs Triton, which comes with torch's builds for GPUs. A program walks through time with some
channels of one row, L tokens at a time: an associative scan within the tile, and the state after it in registers.

    time   ──►  ┌──────┐┌──────┐┌──────┐
    channels    │ tile ││ tile ││ tile │        h from tile to tile
                └──────┘└──────┘└──────┘

TRITON_INTERPRET=1 runs the kernels on a CPU, which is how tests compare them with loops.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

SHORTEST, TOKENS, CHANNELS = 16, 32, 64
"""The least and the most tokens of a tile, and its most channels."""


def scan(a_BT: Tensor, b_BT: Tensor, h0_B: Tensor | None) -> Tensor:
    """Return h_t = a_t h_(t-1) + b_t; see `minllm.model.scans.linear.linear_scan`."""
    h_BT = torch.empty_like(b_BT, memory_format=torch.contiguous_format)
    _launch(a_BT, b_BT, h0_B, h_BT, None, None)
    return h_BT


def scan_backward(
    dh_BT: Tensor, a_BT: Tensor, h_BT: Tensor, h0_B: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a, b and h0: the same recurrence, backwards in time."""
    db_BT, da_BT = torch.empty_like(h_BT), torch.empty_like(h_BT)
    _launch(a_BT, dh_BT, h0_B, db_BT, h_BT.contiguous(), da_BT)
    return da_BT.sum_to_size(a_BT.shape), db_BT, a_BT[:, 0].conj() * db_BT[:, 0]


def _launch(
    a_BT: Tensor, b_BT: Tensor, h0_B: Tensor | None, out_BT: Tensor, h_BT: Tensor | None, da_BT: Tensor | None
) -> None:
    B, T = b_BT.shape[:2]
    F = math.prod(b_BT.shape[2:])
    a_BT, divisor, modulus = _factors(a_BT, b_BT)
    tensors = [_numbers(x) for x in (a_BT, b_BT, h0_B, out_BT, h_BT, da_BT)]
    tokens = max(SHORTEST, min(TOKENS, triton.next_power_of_2(T)))
    channels = min(CHANNELS, triton.next_power_of_2(F))
    kernel = _complex_scan if b_BT.is_complex() else _real_scan
    with torch.cuda.device_of(b_BT):  # Triton launches on the current device
        kernel[(B, triton.cdiv(F, channels))](
            *tensors,
            T,
            F,
            divisor,
            modulus,
            has_h0=h0_B is not None,
            backward=h_BT is not None,
            L=tokens,
            C=channels,
        )


def _factors(a_BT: Tensor, b_BT: Tensor) -> tuple[Tensor, int, int]:
    """Return the factors, a divisor and a modulus: that of channel f is number (f // divisor) % modulus at its time.

    Factors that are broadcast over the first or the last dimensions of channels are read as they are.
    """
    own, all_of_them = a_BT.shape[2:], b_BT.shape[2:]
    rows = a_BT.shape[:2] == b_BT.shape[:2]
    shared = len(own) - next((i for i, n in enumerate(reversed(own)) if n != 1), len(own))
    leading = next((i for i, n in enumerate(own) if n != 1), len(own))
    if rows and own[:shared] == all_of_them[:shared]:
        divisor = math.prod(all_of_them[shared:])
        return a_BT, divisor, math.prod(own)
    if rows and own[leading:] == all_of_them[leading:]:
        return a_BT, 1, math.prod(own)
    return a_BT.expand_as(b_BT), 1, math.prod(all_of_them)


def _numbers(x: Tensor | None) -> Tensor | None:
    """Return a contiguous tensor of real numbers; complex ones are pairs of them."""
    if x is None:
        return None
    return torch.view_as_real(x.resolve_conj().contiguous()) if x.is_complex() else x.contiguous()


@triton.jit
def _then(a, b, a_later, b_later):
    return a * a_later, a_later * b + b_later


@triton.jit
def _real_scan(
    a_ptr,
    b_ptr,
    h0_ptr,
    out_ptr,
    h_ptr,
    da_ptr,
    T,
    F,
    divisor,
    modulus,
    has_h0: tl.constexpr,
    backward: tl.constexpr,
    L: tl.constexpr,
    C: tl.constexpr,
):
    """Backward, b is the gradient of h, and out that of b, which is the recurrence from the last token to the first."""
    row = tl.program_id(0).to(tl.int64)
    f_C = tl.program_id(1) * C + tl.arange(0, C)
    is_channel_C = f_C < F
    factor_C = (f_C // divisor) % modulus
    h0_C = tl.zeros([C], tl.float32)
    if has_h0:
        h0_C = tl.load(h0_ptr + row * F + f_C, is_channel_C, 0.0)
    carry_C = tl.zeros([C], tl.float32) if backward else h0_C
    for begun in range(0, T, L):
        step_L = begun + tl.arange(0, L)
        t_L = T - 1 - step_L if backward else step_L
        inside_LC = (step_L < T)[:, None] & is_channel_C[None, :]
        at_LC = (row * T + t_L)[:, None] * F + f_C[None, :]
        # backward, the state's gradient comes by the factor of the token after it
        by_L = t_L + 1 if backward else t_L
        has_factor_LC = ((by_L < T) & (step_L < T))[:, None] & is_channel_C[None, :]
        a_LC = tl.load(a_ptr + (row * T + by_L)[:, None] * modulus + factor_C[None, :], has_factor_LC, 1.0)
        b_LC = tl.load(b_ptr + at_LC, inside_LC, 0.0)
        decay_LC, own_LC = tl.associative_scan((a_LC, b_LC), 0, _then)
        out_LC = own_LC + decay_LC * carry_C[None, :]
        tl.store(out_ptr + at_LC, out_LC, inside_LC)
        if backward:
            has_earlier_LC = inside_LC & (t_L > 0)[:, None]
            earlier_LC = tl.load(h_ptr + at_LC - F, has_earlier_LC, 0.0)
            earlier_LC = tl.where((t_L == 0)[:, None], h0_C[None, :], earlier_LC)
            tl.store(da_ptr + at_LC, out_LC * earlier_LC, inside_LC)
        # tokens outside have the factor 1 and add nothing
        carry_C = tl.sum(tl.where((tl.arange(0, L) == L - 1)[:, None], out_LC, 0.0), 0)


@triton.jit
def _then_complex(a_re, a_im, b_re, b_im, later_re, later_im, added_re, added_im):
    return (
        a_re * later_re - a_im * later_im,
        a_re * later_im + a_im * later_re,
        later_re * b_re - later_im * b_im + added_re,
        later_re * b_im + later_im * b_re + added_im,
    )


@triton.jit
def _complex_scan(
    a_ptr,
    b_ptr,
    h0_ptr,
    out_ptr,
    h_ptr,
    da_ptr,
    T,
    F,
    divisor,
    modulus,
    has_h0: tl.constexpr,
    backward: tl.constexpr,
    L: tl.constexpr,
    C: tl.constexpr,
):
    """The same for complex numbers; gradients are propagated by the conjugates of the factors."""
    row = tl.program_id(0).to(tl.int64)
    f_C = tl.program_id(1) * C + tl.arange(0, C)
    is_channel_C = f_C < F
    factor_C = (f_C // divisor) % modulus
    h0_re_C, h0_im_C = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    if has_h0:
        h0_re_C = tl.load(h0_ptr + (row * F + f_C) * 2, is_channel_C, 0.0)
        h0_im_C = tl.load(h0_ptr + (row * F + f_C) * 2 + 1, is_channel_C, 0.0)
    re_C = tl.zeros([C], tl.float32) if backward else h0_re_C
    im_C = tl.zeros([C], tl.float32) if backward else h0_im_C
    for begun in range(0, T, L):
        step_L = begun + tl.arange(0, L)
        t_L = T - 1 - step_L if backward else step_L
        inside_LC = (step_L < T)[:, None] & is_channel_C[None, :]
        at_LC = ((row * T + t_L)[:, None] * F + f_C[None, :]) * 2
        by_L = t_L + 1 if backward else t_L
        has_factor_LC = ((by_L < T) & (step_L < T))[:, None] & is_channel_C[None, :]
        a_at_LC = ((row * T + by_L)[:, None] * modulus + factor_C[None, :]) * 2
        a_re_LC = tl.load(a_ptr + a_at_LC, has_factor_LC, 1.0)
        a_im_LC = tl.load(a_ptr + a_at_LC + 1, has_factor_LC, 0.0)
        if backward:
            a_im_LC = -a_im_LC
        b_re_LC = tl.load(b_ptr + at_LC, inside_LC, 0.0)
        b_im_LC = tl.load(b_ptr + at_LC + 1, inside_LC, 0.0)
        decay_re_LC, decay_im_LC, own_re_LC, own_im_LC = tl.associative_scan(
            (a_re_LC, a_im_LC, b_re_LC, b_im_LC), 0, _then_complex
        )
        out_re_LC = own_re_LC + decay_re_LC * re_C[None, :] - decay_im_LC * im_C[None, :]
        out_im_LC = own_im_LC + decay_re_LC * im_C[None, :] + decay_im_LC * re_C[None, :]
        tl.store(out_ptr + at_LC, out_re_LC, inside_LC)
        tl.store(out_ptr + at_LC + 1, out_im_LC, inside_LC)
        if backward:
            has_earlier_LC = inside_LC & (t_L > 0)[:, None]
            h_re_LC = tl.load(h_ptr + at_LC - 2 * F, has_earlier_LC, 0.0)
            h_im_LC = tl.load(h_ptr + at_LC - 2 * F + 1, has_earlier_LC, 0.0)
            h_re_LC = tl.where((t_L == 0)[:, None], h0_re_C[None, :], h_re_LC)
            h_im_LC = tl.where((t_L == 0)[:, None], h0_im_C[None, :], h_im_LC)
            tl.store(da_ptr + at_LC, out_re_LC * h_re_LC + out_im_LC * h_im_LC, inside_LC)
            tl.store(da_ptr + at_LC + 1, out_im_LC * h_re_LC - out_re_LC * h_im_LC, inside_LC)
        is_last_L1 = (tl.arange(0, L) == L - 1)[:, None]
        re_C = tl.sum(tl.where(is_last_L1, out_re_LC, 0.0), 0)
        im_C = tl.sum(tl.where(is_last_L1, out_im_LC, 0.0), 0)
