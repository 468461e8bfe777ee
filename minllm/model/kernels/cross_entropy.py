"""Cross-entropy of rows of logits as a Triton kernel, which replaces the logits by their gradient.

Importing this module needs Triton. A program reads a row twice, a few thousand columns at a time:

    columns ──►  ln Σ exp, with a running maximum, so that the sum doesn't overflow (1805.02867)
    ◄── columns  the gradient; backwards, because the last columns are still in the L2 cache
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, WARPS, STAGES = 4096, 4, 3
"""The columns and the warps of a program, and how many loads ahead it is: the fastest on an H200, at 50,304 columns."""


def launch(
    logits_CP: Tensor,
    targets_C: Tensor,
    factor_C: Tensor,
    losses_C: Tensor,
    right_C: Tensor,
    vocab_size: int,
    softcap: float | None,
    z_loss: float,
    learning: bool,
) -> None:
    """Fill `losses_C` and, unless it is empty, `right_C`; if `learning`, replace the logits.

    See `minllm.objective.cross_entropy_gpu.fused_cross_entropy`.
    """
    C, P = logits_CP.shape
    assert logits_CP.is_contiguous()
    columns = min(COLUMNS, triton.next_power_of_2(P))
    with torch.cuda.device_of(logits_CP):  # Triton launches on the current device
        _rows[(C,)](
            logits_CP,
            targets_C.contiguous(),
            factor_C.contiguous(),
            losses_C,
            right_C,
            vocab_size,
            P,
            softcap or 0.0,
            z_loss,
            has_cap=softcap is not None,
            learning=learning,
            wants_right=right_C.numel() > 0,
            COLUMNS=columns,
            STAGES=STAGES,
            num_warps=min(WARPS, max(1, columns // 32)),  # no two threads have the same column
        )


@triton.jit
def _rows(
    logits_ptr,
    targets_ptr,
    factor_ptr,
    losses_ptr,
    right_ptr,
    V,
    P,
    softcap,
    z_loss,
    has_cap: tl.constexpr,
    learning: tl.constexpr,
    wants_right: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * P
    target, factor = tl.load(targets_ptr + row), tl.load(factor_ptr + row)
    at_target = tl.load(logits_ptr + tl.maximum(target, 0)).to(tl.float32)
    if has_cap:
        at_target = softcap * _tanh(at_target / softcap)

    # the least number and not -inf, from which -inf can't be subtracted
    biggest, sum_B = -3.4e38, tl.zeros([COLUMNS], tl.float32)
    n_blocks = tl.cdiv(P, COLUMNS)
    for block in tl.range(0, n_blocks, num_stages=STAGES):
        at_B = block * COLUMNS + tl.arange(0, COLUMNS)
        # the mask is of P, which is a multiple of 16, so that threads load 16 bytes at a time
        x_B = tl.load(logits_ptr + at_B, at_B < P, 0.0).to(tl.float32)
        if has_cap:
            x_B = softcap * _tanh(x_B / softcap)
        x_B = tl.where(at_B < V, x_B, -float("inf"))
        bigger = tl.maximum(biggest, tl.max(x_B, 0))
        sum_B = sum_B * tl.exp(biggest - bigger) + tl.exp(x_B - bigger)
        biggest = bigger
    log_z = biggest + tl.log(tl.sum(sum_B, 0))

    loss = log_z - at_target + z_loss * log_z * log_z
    # a row that doesn't count may hold NaN, which a factor of 0 doesn't remove
    n_counted = tl.where(factor != 0, V, 0)
    tl.store(losses_ptr + row, tl.where(factor != 0, loss * factor, 0.0))
    if learning or wants_right:
        earlier_B = tl.zeros([COLUMNS], tl.int32)
        for back in tl.range(0, n_blocks, num_stages=STAGES):
            at_B = (n_blocks - 1 - back) * COLUMNS + tl.arange(0, COLUMNS)
            x_B = tl.load(logits_ptr + at_B, at_B < P, 0.0).to(tl.float32)
            if has_cap:
                tanh_B = _tanh(x_B / softcap)
                x_B = softcap * tanh_B
            if wants_right:
                earlier_B += ((x_B == biggest) & (at_B < target)).to(tl.int32)
            if learning:
                # d loss / d logits = p − one-hot(target), and d (ln z)² / d logits = 2 ln z · p
                p_B = tl.exp(x_B - log_z) * (1 + 2 * z_loss * log_z)
                d_B = (p_B - (at_B == target).to(tl.float32)) * factor
                if has_cap:
                    d_B *= 1 - tanh_B * tanh_B
                d_B = tl.where(at_B < n_counted, d_B, 0.0)
                tl.store(logits_ptr + at_B, d_B, at_B < P)
        if wants_right:  # of several tokens that are as probable, the first one counts
            n_earlier = tl.where(target >= 0, tl.sum(earlier_B, 0), 1)
            tl.store(right_ptr + row, tl.where(at_target == biggest, n_earlier, 1) == 0)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1
