"""The core of softmax attention, from queries, keys and values to outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    visible: Tensor | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(q kᵀ · scale) v for each head, (B, H, T, width of v); H/G query heads share a key/value head.

    Args:
        visible: which keys a query may see, bool (B or 1, 1, T, S), or a bias of the scores, (B or 1, H, T, S);
            None means all keys up to the query's own position if `causal`, and otherwise all keys.
        scale: factor of the scores; None means 1/√K.
        dropout: dropout probability of the attention weights.
    """
    causal = causal and visible is None and q_BHTK.shape[2] > 1
    if causal and not dropout and _in_blocks_is_faster(q_BHTK):
        return attend_in_blocks(q_BHTK, k_BGSK, v_BGSK, scale=scale)
    grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if grouped and visible is not None and q_BHTK.is_cuda:
        # no fused kernel of GPUs has both a mask and shared keys
        if q_BHTK.shape[2] == 1:
            return attend_once(q_BHTK, k_BGSK, v_BGSK, visible, scale=scale, dropout=dropout)
        times, grouped = q_BHTK.shape[1] // k_BGSK.shape[1], False
        k_BGSK, v_BGSK = k_BGSK.repeat_interleave(times, 1), v_BGSK.repeat_interleave(times, 1)
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, visible, dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def attend_once(
    q_BH1K: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    visible: Tensor,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`attend` for one query per head: the heads that share keys become the queries of one head, R = H/G."""
    (B, H, _, K), G = q_BH1K.shape, k_BGSK.shape[1]
    if visible.shape[1] > 1:
        visible = visible.reshape(-1, G, H // G, visible.shape[-1])
    q_BGRK = q_BH1K.reshape(B, G, -1, K)
    y_BGRK = F.scaled_dot_product_attention(q_BGRK, k_BGSK, v_BGSK, visible, dropout, scale=scale)
    return y_BGRK.reshape(B, H, 1, -1)


def attend_in_blocks(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, *, scale: float | None = None) -> Tensor:
    """Causal attention in a few blocks of queries with plain matrix products; each block skips all later keys.

        keys ──►                    The upper right is never computed. The query heads of a group are stacked as
    q   ┌────┐                      more rows of one product, so that keys are not repeated.
    │   │ ╲  │
    ▼   ├────┼────┐
        │    │ ╲  │
        └────┴────┘
    """
    (B, H, T, K), G, device = q_BHTK.shape, k_BGSK.shape[1], q_BHTK.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q_BHTK, k_BGSK, v_BGSK = q_BHTK.to(dtype), k_BGSK.to(dtype), v_BGSK.to(dtype)
    q_BGRTK = (q_BHTK * (K**-0.5 if scale is None else scale)).reshape(B, G, H // G, T, K)
    return _BlockAttention.apply(q_BGRTK, k_BGSK, v_BGSK).reshape(B, H, T, -1)


class _BlockAttention(torch.autograd.Function):
    """softmax(q kᵀ) v with its gradient written out, in the same blocks; R = H/G query heads share each key head.

    Autograd would pad the gradient of each block's slice with zeros to the whole length, and add these up.
    """

    @staticmethod
    def forward(ctx, q_BGRTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor) -> Tensor:
        v_BGSK = v_BGSK.contiguous()  # a copy, so that the tensor it was split from can be freed
        y_blocks, saved = [], []
        for start, end in _bounds(q_BGRTK.shape[3]):
            q_BGMK = q_BGRTK[:, :, :, start:end].flatten(2, 3)  # M = R·(end - start) rows
            # adding is twice as fast as filling in compiled code
            mask_TS = q_BGMK.new_full((end - start, end), -torch.inf).triu(start + 1)
            # autocast would keep the weights in fp32: twice the memory
            with torch.autocast(q_BGMK.device.type, enabled=False):
                scores_BGMS = q_BGMK @ k_BGSK[:, :, :end].mT
                scores_BGRTS = scores_BGMS.unflatten(2, (-1, end - start)) + mask_TS
                p_BGMS = scores_BGRTS.softmax(-1).flatten(2, 3)
                y_BGMK = p_BGMS @ v_BGSK[:, :, :end]
            y_blocks.append(y_BGMK.unflatten(2, (-1, end - start)))
            saved += [q_BGMK, p_BGMS]
        ctx.save_for_backward(k_BGSK, v_BGSK, *saved)
        return torch.cat(y_blocks, dim=3)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BGRTK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k_BGSK, v_BGSK, *saved = ctx.saved_tensors
        bounds = _bounds(dy_BGRTK.shape[3])
        dq, dk, dv = [], [], []  # of each block
        for (start, end), q_BGMK, p_BGMS in zip(bounds, saved[::2], saved[1::2]):
            dy_BGMK = dy_BGRTK[:, :, :, start:end].flatten(2, 3)
            dp_BGMS = dy_BGMK @ v_BGSK[:, :, :end].mT
            dscores_BGMS = torch._softmax_backward_data(dp_BGMS, p_BGMS, -1, p_BGMS.dtype)
            dq.append((dscores_BGMS @ k_BGSK[:, :, :end]).unflatten(2, (-1, end - start)))
            dk.append(dscores_BGMS.mT @ q_BGMK)
            dv.append(p_BGMS.mT @ dy_BGMK)
        return torch.cat(dq, dim=3), _summed(dk, bounds), _summed(dv, bounds)


def _bounds(T: int) -> list[tuple[int, int]]:
    """Return where each block of queries starts and ends; a block's keys end with it."""
    # more blocks compute less above the diagonal, but take longer to compile
    size = -(-T // (2 if torch.compiler.is_compiling() else 4))
    return [(start, min(start + size, T)) for start in range(0, T, size)]


def _summed(parts: list[Tensor], bounds: list[tuple[int, int]]) -> Tensor:
    """Add up the gradients of the keys from each block of queries."""
    sums = [sum(part[:, :, start:end] for part in parts[i:]) for i, (start, end) in enumerate(bounds)]
    return torch.cat(sums, dim=2)


def _in_blocks_is_faster(q_BHTK: Tensor) -> bool:
    # Measured on CPUs: the backward pass of torch's fused attention is slow there, most of all in bf16.
    return q_BHTK.device.type == "cpu" and q_BHTK.requires_grad
