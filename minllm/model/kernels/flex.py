"""Masked attention that skips what no query sees, by torch's flex attention, in compiled code on a GPU.

An explicit mask has T·S numbers for each row, and every score is computed. Here a mask is a function of two positions,
which torch.compile makes a part of the attention kernel, and tiles in which nothing is visible are skipped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether in row b, head h, query q sees key k; all four are integers, and the result is a bool."""

SHORTEST = 128
"""The size of a tile: shorter texts are in a single one."""


def applies(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor) -> bool:
    """Whether the kernel can be used: in compiled bf16 training on a GPU, for heads of usual widths."""
    T, S, widths = q_BHTK.shape[2], k_BGSK.shape[2], {q_BHTK.shape[3], v_BGSK.shape[3]}
    return (
        torch.compiler.is_compiling()
        and q_BHTK.device.type == "cuda"
        and torch.is_autocast_enabled("cuda")
        and SHORTEST <= T == S
        and widths <= {16, 32, 64, 128, 256}
    )


def tiles(sees: Sees, rows: int | None, length: int, device: torch.device) -> BlockMask:
    """Return which tiles of the scores are computed; `rows` is None if all rows have the same mask."""
    return create_block_mask(sees, rows, None, length, length, device=device)


def attend_in_tiles(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: BlockMask | None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return softmax(softcap(q kᵀ · scale)) v for each head; H/G query heads share a key/value head."""
    device = q_BHTK.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q_BHTK, k_BGSK, v_BGSK = q_BHTK.to(dtype), k_BGSK.to(dtype), v_BGSK.to(dtype)

    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return flex_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        score_mod=None if softcap is None else capped,
        block_mask=mask,
        scale=scale,
        enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
    )
