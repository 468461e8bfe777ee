"""The complex exponential moving average of Megalodon (2404.08801), with N complex numbers per channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minllm.model.scans.linear import linear_scan

CHUNK = 16
"""Tokens per matrix product. States are stored only at the boundaries of chunks."""


def moving_average(
    x_BTD: Tensor,
    log_r_DN: Tensor,
    angle_DN: Tensor,
    p_DN: Tensor,
    gamma_DN2: Tensor,
    omega_D: Tensor,
    starts_BT: Tensor | None = None,
    h0_BDN2: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return y_BTD and the last state h_BDN2 of

        h_t = q h_(t-1) + p x_t        y_t = Re(Σ_n γ_n h_tn) + ω x_t        q = exp(log r + i angle)

    q is the same for all tokens, so each chunk needs only three matrix products per channel: from its inputs to its
    outputs, from its inputs to the state after it, and from the state before it to its outputs. Complex numbers are
    pairs of real ones.

    Args:
        x_BTD: the input.
        log_r_DN: the logarithm of each number's decay per token, below 0.
        angle_DN: each number's rotation per token, in radians.
        p_DN: the weights of the input in the state.
        gamma_DN2: γ, its real and imaginary parts.
        omega_D: the weight of the skip connection.
        starts_BT: the index in x where each token's segment begins, negative if before x; None means one segment.
        h0_BDN2: the state before the first token; None means 0.
    """
    B, T, D = x_BTD.shape
    h0_BDN2 = x_BTD.new_zeros(B, *p_DN.shape, 2) if h0_BDN2 is None else h0_BDN2
    h_DBN2, ys = h0_BDN2.transpose(0, 1), []
    rest = T % CHUNK
    # the remaining tokens form a shorter chunk
    for first, end, L in ((0, T - rest, CHUNK), (T - rest, T, rest)):
        if first < end:
            starts = None if starts_BT is None else starts_BT[:, first:end] - first
            part = (x_BTD[:, first:end], log_r_DN, angle_DN, p_DN, gamma_DN2, omega_D, starts, h_DBN2, L)
            y_BTD, h_DBN2 = _in_chunks(*part)
            ys.append(y_BTD)
    return ys[0] if len(ys) == 1 else torch.cat(ys, dim=1), h_DBN2.transpose(0, 1)


def _in_chunks(
    x_BTD: Tensor,
    log_r_DN: Tensor,
    angle_DN: Tensor,
    p_DN: Tensor,
    gamma_DN2: Tensor,
    omega_D: Tensor,
    starts_BT: Tensor | None,
    h0_DBN2: Tensor,
    L: int,
) -> tuple[Tensor, Tensor]:
    """The same for C chunks of L tokens. Channels are the first dimension here, because each has its own matrices."""
    (B, T, D), N = x_BTD.shape, p_DN.shape[1]
    steps = torch.arange(L + 1, device=x_BTD.device)
    # q to the power of 0 … L
    r_DNL, angle_DNL = torch.exp(log_r_DN[..., None] * steps), angle_DN[..., None] * steps
    re_DNL, im_DNL = r_DNL * angle_DNL.cos(), r_DNL * angle_DNL.sin()
    gamma_re, gamma_im = gamma_DN2[..., None].unbind(2)
    # contribution of a state to the token l positions after it: Re(γ q^l h)
    reads_re, reads_im = gamma_re * re_DNL - gamma_im * im_DNL, -(gamma_re * im_DNL + gamma_im * re_DNL)
    reads_DML = torch.stack([reads_re, reads_im], dim=2).flatten(1, 2)
    # contribution of a token to the one l positions after it
    kernel_DL = (p_DN[..., None] * reads_re[..., :-1]).sum(1)
    kernel_DL = torch.cat([kernel_DL[:, :1] + omega_D[:, None], kernel_DL[:, 1:]], dim=1)
    # contribution of a token to the state at its chunk's end: p q^(L-1-l)
    powers_DN2L = torch.stack([re_DNL, im_DNL], dim=2)
    writes_DLM = (p_DN[..., None, None] * powers_DN2L[..., :-1]).flip(-1).flatten(1, 2).mT

    x_DCBL = x_BTD.unflatten(1, (-1, L)).permute(3, 1, 0, 2)
    a_DCBN2 = powers_DN2L[:, None, None, ..., -1].expand(-1, T // L, -1, -1, -1)
    kept_DCBL = x_DCBL
    if starts_BT is not None:
        starts_CBL = starts_BT.unflatten(1, (-1, L)).transpose(0, 1)
        places_CBL = torch.arange(T, device=x_BTD.device).view(-1, 1, L)
        goes_on_CBL = starts_CBL < places_CBL[..., :1]  # its segment began before the chunk
        a_DCBN2 = a_DCBN2 * goes_on_CBL[..., -1:, None]
        kept_DCBL = torch.where(places_CBL >= starts_CBL[..., -1:], x_DCBL, 0)

    s_DKM = kept_DCBL.reshape(D, -1, L) @ writes_DLM
    h_DCBN2 = linear_scan(a_DCBN2, s_DKM.view(D, -1, B, N, 2), h0_DBN2, pairs=True)
    earlier_DKM = torch.cat([h0_DBN2[:, None], h_DCBN2[:, :-1]], dim=1).view(D, -1, 2 * N)
    if starts_BT is None:
        y_DKL = torch.baddbmm(
            earlier_DKM @ reads_DML[..., 1:], x_DCBL.reshape(D, -1, L), _toeplitz(kernel_DL)
        )
        y_DCBL = y_DKL.view(D, -1, B, L)
    else:
        y_DCBL = (earlier_DKM @ reads_DML[..., 1:]).view(D, -1, B, L).where(goes_on_CBL, 0)
    y_BTD = y_DCBL.permute(2, 1, 3, 0).reshape(B, T, D)
    if starts_BT is not None:
        y_BTD = y_BTD + _in_segments(x_BTD, kernel_DL, places_CBL - starts_CBL.maximum(places_CBL[..., :1]))
    return y_BTD, h_DCBN2[:, -1]


def _toeplitz(kernel_DL: Tensor) -> Tensor:
    """Return the matrix (D, L, L) that has k(i - j) in row j and column i, and 0 where i < j."""
    L = kernel_DL.shape[1]
    return F.pad(kernel_DL, (L - 1, 0)).unfold(-1, L, 1).flip(1)


def _in_segments(x_BTD: Tensor, kernel_DL: Tensor, earlier_CBL: Tensor) -> Tensor:
    """The products within chunks that contain several segments: each token sees only the `earlier_CBL` before it."""
    earlier_BT1 = earlier_CBL.transpose(0, 1).flatten(1)[..., None]
    y_BTD = kernel_DL[:, 0] * x_BTD
    for i in range(1, kernel_DL.shape[1]):
        y_BTD = torch.addcmul(y_BTD, kernel_DL[:, i], torch.where(earlier_BT1 >= i, x_BTD.roll(i, dims=1), 0))
    return y_BTD
