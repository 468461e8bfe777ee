"""The selective scan of Mamba as Triton kernels: states stay in registers, and are stored only between chunks.

Importing this module needs Triton. A program walks through the chunks of one row with D channels and their N states
each, the tile (L, D, N); within a chunk it is an associative scan. The backward pass goes from the last chunk to the
first, and recomputes the states of each from the one stored before it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 16
"""The channels of a program; the tokens of a tile are those of a chunk."""


def selective_forward(
    u_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    h0_BDN: Tensor | None,
    keep_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Return y_BTD and the states before the first chunk and after each, (B, chunks + 1, D, N)."""
    (B, T, D), N = u_BTD.shape, A_DN.shape[1]
    y_BTD = torch.empty_like(u_BTD, memory_format=torch.contiguous_format)
    h_BCDN = u_BTD.new_empty(B, -(-T // chunk) + 1, D, N)
    h_BCDN[:, 0] = 0 if h0_BDN is None else h0_BDN
    keep_BT = None if keep_BT is None else keep_BT.float()
    inputs = [None if x is None else x.contiguous() for x in (u_BTD, dt_BTD, A_DN, B_BTN, C_BTN, keep_BT)]
    grid, sizes = _sizes(B, T, D, N, chunk)
    with torch.cuda.device_of(u_BTD):  # Triton launches on the current device
        _forward[grid](*inputs, y_BTD, h_BCDN, T, D, N, has_keep=keep_BT is not None, **sizes)
    return y_BTD, h_BCDN


def selective_backward(
    dy_BTD: Tensor,
    dlast_BDN: Tensor,
    u_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    h_BCDN: Tensor,
    keep_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, dt, A, B, C and h0."""
    (B, T, D), N = u_BTD.shape, A_DN.shape[1]
    keep_BT = None if keep_BT is None else keep_BT.float()
    inputs = (dy_BTD, dlast_BDN, u_BTD, dt_BTD, A_DN, B_BTN, C_BTN, h_BCDN, keep_BT)
    inputs = [None if x is None else x.contiguous() for x in inputs]
    grid, sizes = _sizes(B, T, D, N, chunk)
    du_BTD, ddt_BTD = (torch.empty(B, T, D, device=u_BTD.device) for _ in range(2))
    # each program adds up its own channels, and torch the rest, so that the order of the sum never varies
    dB_BPTN, dC_BPTN = (torch.empty(B, grid[1], T, N, device=u_BTD.device) for _ in range(2))
    dA_BDN, dh0_BDN = (torch.empty(B, D, N, device=u_BTD.device) for _ in range(2))
    outputs = (du_BTD, ddt_BTD, dA_BDN, dB_BPTN, dC_BPTN, dh0_BDN)
    # twice the usual number of warps: the tiles of the backward pass would not fit into the registers of four
    with torch.cuda.device_of(u_BTD):
        _backward[grid](*inputs, *outputs, T, D, N, has_keep=keep_BT is not None, **sizes, num_warps=8)
    return du_BTD, ddt_BTD, dA_BDN.sum(0), dB_BPTN.sum(1), dC_BPTN.sum(1), dh0_BDN


def _sizes(B: int, T: int, D: int, N: int, chunk: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Return the grid of programs, and the sizes of their tiles."""
    channels = min(CHANNELS, triton.next_power_of_2(D))
    tile = {"LENGTH": chunk, "CHANNELS": channels, "STATES": triton.next_power_of_2(N)}
    return (B, triton.cdiv(D, channels)), tile


@triton.jit
def _then(a, b, a_later, b_later):
    return a * a_later, a_later * b + b_later


@triton.jit
def _forward(
    u_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    keep_ptr,
    y_ptr,
    h_ptr,
    T,
    D,
    N,
    has_keep: tl.constexpr,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d_D = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n_N = tl.arange(0, STATES)
    at_DN = d_D[:, None] * N + n_N[None, :]
    is_state_DN = (d_D < D)[:, None] & (n_N < N)[None, :]
    A_DN = tl.load(A_ptr + at_DN, is_state_DN, 0.0)
    n_chunks = tl.cdiv(T, LENGTH)
    h_ptr += row * (n_chunks + 1) * D * N
    h_DN = tl.load(h_ptr + at_DN, is_state_DN, 0.0)
    for chunk in range(0, n_chunks):
        t_L = chunk * LENGTH + tl.arange(0, LENGTH)
        at_LD = (row * T + t_L)[:, None] * D + d_D[None, :]
        inside_LD = (t_L < T)[:, None] & (d_D < D)[None, :]
        at_LN = (row * T + t_L)[:, None] * N + n_N[None, :]
        inside_LN = (t_L < T)[:, None] & (n_N < N)[None, :]
        u_LD = tl.load(u_ptr + at_LD, inside_LD, 0.0)
        dt_LD = tl.load(dt_ptr + at_LD, inside_LD, 0.0)
        write_LN = tl.load(B_ptr + at_LN, inside_LN, 0.0)
        read_LN = tl.load(C_ptr + at_LN, inside_LN, 0.0)
        a_LDN = tl.exp(dt_LD[:, :, None] * A_DN[None, :, :])
        if has_keep:
            a_LDN *= tl.load(keep_ptr + row * T + t_L, t_L < T, 1.0)[:, None, None]
        b_LDN = u_LD[:, :, None] * write_LN[:, None, :]
        decay_LDN, own_LDN = tl.associative_scan((a_LDN, b_LDN), 0, _then)
        h_LDN = own_LDN + decay_LDN * h_DN[None, :, :]
        tl.store(y_ptr + at_LD, tl.sum(h_LDN * read_LN[:, None, :], 2), inside_LD)
        # tokens outside keep the state: their dt and u are 0
        h_DN = tl.sum(tl.where((tl.arange(0, LENGTH) == LENGTH - 1)[:, None, None], h_LDN, 0.0), 0)
        h_ptr += D * N
        tl.store(h_ptr + at_DN, h_DN, is_state_DN)


@triton.jit
def _backward(
    dy_ptr,
    dlast_ptr,
    u_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    h_ptr,
    keep_ptr,
    du_ptr,
    ddt_ptr,
    dA_ptr,
    dB_ptr,
    dC_ptr,
    dh0_ptr,
    T,
    D,
    N,
    has_keep: tl.constexpr,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d_D = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n_N = tl.arange(0, STATES)
    at_DN = d_D[:, None] * N + n_N[None, :]
    is_state_DN = (d_D < D)[:, None] & (n_N < N)[None, :]
    A_DN = tl.load(A_ptr + at_DN, is_state_DN, 0.0)
    n_chunks = tl.cdiv(T, LENGTH)
    dh_DN = tl.load(dlast_ptr + row * D * N + at_DN, is_state_DN, 0.0)
    dA_DN = tl.zeros([CHANNELS, STATES], tl.float32)
    part = row * tl.num_programs(1) + tl.program_id(1)
    for back in range(0, n_chunks):
        chunk = n_chunks - 1 - back
        t_L = chunk * LENGTH + tl.arange(0, LENGTH)
        at_LD = (row * T + t_L)[:, None] * D + d_D[None, :]
        inside_LD = (t_L < T)[:, None] & (d_D < D)[None, :]
        at_LN = (row * T + t_L)[:, None] * N + n_N[None, :]
        inside_LN = (t_L < T)[:, None] & (n_N < N)[None, :]
        u_LD = tl.load(u_ptr + at_LD, inside_LD, 0.0)
        dt_LD = tl.load(dt_ptr + at_LD, inside_LD, 0.0)
        dy_LD = tl.load(dy_ptr + at_LD, inside_LD, 0.0)
        write_LN = tl.load(B_ptr + at_LN, inside_LN, 0.0)
        read_LN = tl.load(C_ptr + at_LN, inside_LN, 0.0)
        has_later_L = t_L + 1 < T
        dt_later_LD = tl.load(dt_ptr + at_LD + D, has_later_L[:, None] & (d_D < D)[None, :], 0.0)

        # the states of the chunk
        h0_DN = tl.load(h_ptr + (row * (n_chunks + 1) + chunk) * D * N + at_DN, is_state_DN, 0.0)
        a_LDN = tl.exp(dt_LD[:, :, None] * A_DN[None, :, :])
        if has_keep:
            a_LDN *= tl.load(keep_ptr + row * T + t_L, t_L < T, 1.0)[:, None, None]
        b_LDN = u_LD[:, :, None] * write_LN[:, None, :]
        decay_LDN, own_LDN = tl.associative_scan((a_LDN, b_LDN), 0, _then)
        h_LDN = own_LDN + decay_LDN * h0_DN[None, :, :]

        # the gradient of each state comes from its own output and, by the next token's decay, from the next state
        later_LDN = tl.exp(dt_later_LD[:, :, None] * A_DN[None, :, :])
        if has_keep:
            later_LDN *= tl.load(keep_ptr + row * T + t_L + 1, has_later_L, 1.0)[:, None, None]
        from_y_LDN = dy_LD[:, :, None] * read_LN[:, None, :]
        decay_LDN, own_LDN = tl.associative_scan((later_LDN, from_y_LDN), 0, _then, reverse=True)
        dh_LDN = own_LDN + decay_LDN * dh_DN[None, :, :]
        dh_DN = tl.sum(tl.where((tl.arange(0, LENGTH) == 0)[:, None, None], dh_LDN, 0.0), 0)

        tl.store(du_ptr + at_LD, tl.sum(dh_LDN * write_LN[:, None, :], 2), inside_LD)
        at_PLN = part * T * N + t_L[:, None] * N + n_N[None, :]
        tl.store(dB_ptr + at_PLN, tl.sum(dh_LDN * u_LD[:, :, None], 1), inside_LN)
        tl.store(dC_ptr + at_PLN, tl.sum(h_LDN * dy_LD[:, :, None], 1), inside_LN)
        # the gradient of dt A: a h_(t-1) is what the state has from before
        dlog_LDN = tl.where(inside_LD[:, :, None], dh_LDN * (h_LDN - b_LDN), 0.0)
        tl.store(ddt_ptr + at_LD, tl.sum(dlog_LDN * A_DN[None, :, :], 2), inside_LD)
        dA_DN += tl.sum(dlog_LDN * dt_LD[:, :, None], 0)

    # of the state before the first token
    first_D = tl.load(dt_ptr + row * T * D + d_D, d_D < D, 0.0)
    first_DN = tl.exp(first_D[:, None] * A_DN)
    if has_keep:
        first_DN *= tl.load(keep_ptr + row * T)
    tl.store(dh0_ptr + row * D * N + at_DN, dh_DN * first_DN, is_state_DN)
    tl.store(dA_ptr + row * D * N + at_DN, dA_DN, is_state_DN)
