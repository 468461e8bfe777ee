"""The selective scan of Mamba (2312.00752), with an input-dependent state of N numbers per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from minllm.model.kernels.installed import kernel
from minllm.model.kernels.own import own_kernels
from minllm.model.precision import in_fp32

CHUNK = 16
"""Tokens whose B·D·N states are in memory at a time. States between chunks are saved, the others recomputed."""


def selective_scan(
    x_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    h0_BDN: Tensor | None = None,
    keep_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return y_BTD and the last state h_BDN of

        h_t = exp(dt_t A) ∘ h_(t-1) + (dt_t x_t) Bᵀ_t        y_t = h_t C_t

    Args:
        x_BTD: the input.
        dt_BTD: the time steps, above 0.
        A_DN: the decay rates, below 0.
        B_BTN: the input weights.
        C_BTN: the output weights.
        h0_BDN: the state before the first token; None means 0.
        keep_BT: 0 where the state is reset before a token, 1 elsewhere; None means no resets.
    """
    run = kernel("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", x_BTD)
    if run and h0_BDN is None and keep_BT is None:
        x, dt, B, C = (x.float().mT.contiguous() for x in (x_BTD, dt_BTD, B_BTN, C_BTN))
        y_BDT, h_BDN = run(u=x, delta=dt, A=A_DN, B=B, C=C, return_last_state=True)
        return y_BDT.mT, h_BDN
    y_BTD, h_BCDN = in_fp32(_selective_scan, dt_BTD * x_BTD, dt_BTD, A_DN, B_BTN, C_BTN, h0_BDN, keep_BT)
    return y_BTD, h_BCDN[:, -1]


@torch.library.custom_op("minllm::selective_scan", mutates_args=())
def _selective_scan(
    u_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    h0_BDN: Tensor | None,
    keep_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return y_BTD and the states before the first chunk and after each, (B, chunks + 1, D, N)."""
    if kernels := own_kernels("selective", u_BTD, dt_BTD, A_DN, B_BTN, C_BTN, h0_BDN):
        return kernels.selective_forward(u_BTD, dt_BTD, A_DN, B_BTN, C_BTN, h0_BDN, keep_BT, CHUNK)
    (B, _, D), N = u_BTD.shape, A_DN.shape[1]
    h_BDN = u_BTD.new_zeros(B, D, N) if h0_BDN is None else h0_BDN
    ys, states = [], [h_BDN]
    for u, dt, write, read, keep in _chunks(u_BTD, dt_BTD, B_BTN, C_BTN, keep_BT):
        h_BLDN = _states(_decay(dt, A_DN, keep), u, write, h_BDN)
        ys.append(torch.einsum("bldn,bln->bld", h_BLDN, read))
        h_BDN = h_BLDN[:, -1].clone()  # a view would keep the states of the whole chunk alive
        states.append(h_BDN)
    return torch.cat(ys, dim=1), torch.stack(states, dim=1)


@torch.library.custom_op("minllm::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    dy_BTD: Tensor,
    dlast_BDN: Tensor,
    u_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    h_BCDN: Tensor,
    keep_BT: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, dt, A, B, C and h0, from the last chunk to the first, recomputing its states."""
    if kernels := own_kernels("selective", dy_BTD, dlast_BDN, u_BTD, h_BCDN):
        inputs = (dy_BTD, dlast_BDN, u_BTD, dt_BTD, A_DN, B_BTN, C_BTN, h_BCDN, keep_BT)
        return kernels.selective_backward(*inputs, CHUNK)
    du, ddt, dB, dC = (torch.empty_like(x) for x in (u_BTD, dt_BTD, B_BTN, C_BTN))
    dA_DN, dh_BDN = torch.zeros_like(A_DN), dlast_BDN
    chunks = list(zip(_chunks(u_BTD, dt_BTD, B_BTN, C_BTN, keep_BT), _chunks(du, ddt, dB, dC, dy_BTD)))
    for i in reversed(range(len(chunks))):
        (u, dt, write, read, keep), (du_out, ddt_out, dB_out, dC_out, dy) = chunks[i]
        h0_BDN, a_BLDN = h_BCDN[:, i], _decay(dt, A_DN, keep)
        h_BLDN = _states(a_BLDN, u, write, h0_BDN)
        dC_out.copy_(torch.einsum("bldn,bld->bln", h_BLDN, dy))
        # the gradient of each state comes from its own output and from the next state
        dh_BLDN = dy[..., None] * read[:, :, None]
        dh_BLDN[:, -1] += dh_BDN
        for t in range(dh_BLDN.shape[1] - 2, -1, -1):
            dh_BLDN[:, t].addcmul_(a_BLDN[:, t + 1], dh_BLDN[:, t + 1])
        dh_BDN = a_BLDN[:, 0] * dh_BLDN[:, 0]
        du_out.copy_(torch.einsum("bldn,bln->bld", dh_BLDN, write))
        dB_out.copy_(torch.einsum("bldn,bld->bln", dh_BLDN, u))
        # the gradient of dt A
        dlog_BLDN = dh_BLDN.mul_(a_BLDN)
        dlog_BLDN[:, 0] *= h0_BDN
        dlog_BLDN[:, 1:] *= h_BLDN[:, :-1]
        ddt_out.copy_(torch.einsum("bldn,dn->bld", dlog_BLDN, A_DN))
        dA_DN += torch.einsum("bldn,bld->dn", dlog_BLDN, dt)
    return du, ddt, dA_DN, dB, dC, dh_BDN


def _chunks(*inputs: Tensor | None) -> zip:
    """Yield a view of each input for each chunk."""
    split = [None if x is None else x.split(CHUNK, dim=1) for x in inputs]
    count = next(len(x) for x in split if x is not None)
    return zip(*([None] * count if x is None else x for x in split))


def _decay(dt_BLD: Tensor, A_DN: Tensor, keep_BL: Tensor | None) -> Tensor:
    a_BLDN = torch.exp_(dt_BLD[..., None] * A_DN)
    return a_BLDN if keep_BL is None else a_BLDN.mul_(keep_BL[..., None, None])


def _states(a_BLDN: Tensor, u_BLD: Tensor, B_BLN: Tensor, h_BDN: Tensor) -> Tensor:
    """Return the states after each token of a chunk."""
    h_BLDN = u_BLD[..., None] * B_BLN[:, :, None]
    for a_BDN, next_BDN in zip(a_BLDN.unbind(1), h_BLDN.unbind(1)):
        h_BDN = next_BDN.addcmul_(a_BDN, h_BDN)
    return h_BLDN


@_selective_scan.register_fake
def _(u_BTD, dt_BTD, A_DN, B_BTN, C_BTN, h0_BDN, keep_BT):
    B, T, D = u_BTD.shape
    return u_BTD.new_empty(B, T, D), u_BTD.new_empty(B, -(-T // CHUNK) + 1, *A_DN.shape)


@_selective_scan_backward.register_fake
def _(dy_BTD, dlast_BDN, u_BTD, dt_BTD, A_DN, B_BTN, C_BTN, h_BCDN, keep_BT):
    inputs = u_BTD, dt_BTD, A_DN, B_BTN, C_BTN, h_BCDN[:, 0]
    return tuple(torch.empty_like(x) for x in inputs)


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *read, h0_BDN, keep_BT = inputs
    ctx.begins_empty = h0_BDN is None
    ctx.save_for_backward(*read, output[1], keep_BT)


def _backward(ctx, dy_BTD: Tensor, dh_BCDN: Tensor) -> tuple[Tensor | None, ...]:
    # only the last of the states is an output
    *grads, dh0_BDN = _selective_scan_backward(dy_BTD, dh_BCDN[:, -1], *ctx.saved_tensors)
    return *grads, None if ctx.begins_empty else dh0_BDN, None


_selective_scan.register_autograd(_backward, setup_context=_save)
