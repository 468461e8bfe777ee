"""The core of softmax attention: queries, keys and values in, mixed values out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Return softmax(q kᵀ · scale) v for each head, (B, H, T, K); H/G query heads share a key/value head.

    Args:
        visible: bool (B or 1, 1, T, S), which keys a query may see; None means all up to its own place where
            `causal`, and all otherwise.
        scale: what the scores are multiplied by; None means 1/√K.
        dropout: share of the attention weights that is dropped.
    """
    causal = causal and visible is None and q_BHTK.shape[2] > 1
    if causal and not dropout and _blocks_are_faster(q_BHTK):
        return attend_in_blocks(q_BHTK, k_BGSK, v_BGSK, scale=scale)
    grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, visible, dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def attend_in_blocks(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, *, scale: float | None = None) -> Tensor:
    """Causal attention as two blocks of queries and plain matrix products; each block meets its own keys only.

        keys ──►                    The upper right quarter is never computed. The query heads of a group are
    q   ┌────┐                      stacked as more rows of one product, so that keys are not repeated.
    │   │ ╲  │
    ▼   ├────┼────┐
        │    │ ╲  │
        └────┴────┘
    """
    (B, H, T, K), G = q_BHTK.shape, k_BGSK.shape[1]
    scale = K**-0.5 if scale is None else scale
    q_BGRTK = q_BHTK.reshape(B, G, H // G, T, K) * scale
    blocks = []
    for start, end in ((0, T // 2), (T // 2, T)):
        # added rather than filled in: in compiled code this is half the time
        mask_TS = q_BHTK.new_full((end - start, end), -torch.inf).triu(start + 1)
        q_BGMK = q_BGRTK[:, :, :, start:end].flatten(2, 3)
        # autocast would keep the weights in fp32 as well: twice the memory
        with torch.autocast(q_BHTK.device.type, enabled=False):
            scores_BGMS = q_BGMK @ k_BGSK[:, :, :end].transpose(-1, -2)
            p_BGRTS = (scores_BGMS.unflatten(2, (H // G, end - start)) + mask_TS).softmax(-1).to(v_BGSK.dtype)
            y_BGMK = p_BGRTS.flatten(2, 3) @ v_BGSK[:, :, :end]
        blocks.append(y_BGMK.unflatten(2, (H // G, end - start)))
    return torch.cat(blocks, dim=3).reshape(B, H, T, K)


def _blocks_are_faster(q: Tensor) -> bool:
    # Measured on CPUs: the backward pass of torch's fused attention is slow there, most of all in bf16.
    return q.device.type == "cpu" and q.requires_grad
