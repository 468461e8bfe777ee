"""Definitions, in plain steps, of torch functions that compute many steps in one call.

The trace follows a definition instead of the call. `test_trace.py` checks each definition against torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scaled_dot_product_attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    visible: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(q kᵀ · scale) v, the definition of `F.scaled_dot_product_attention`."""
    H, G = q_BHTK.shape[-3], k_BGSK.shape[-3]
    if enable_gqa:
        k_BHSK = k_BGSK.repeat_interleave(H // G, dim=-3)
        v_BHSK = v_BGSK.repeat_interleave(H // G, dim=-3)
    else:
        k_BHSK, v_BHSK = k_BGSK, v_BGSK
    (T, K), S = q_BHTK.shape[-2:], k_BGSK.shape[-2]
    scores_BHTS = q_BHTK @ k_BHSK.transpose(-1, -2)
    scores_BHTS = scores_BHTS * (K**-0.5 if scale is None else scale)
    if is_causal:
        visible_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTK.device).tril()
        visible = visible_TS
    if visible is not None and visible.dtype == torch.bool:
        scores_BHTS = scores_BHTS.masked_fill(~visible, -torch.inf)
    elif visible is not None:
        scores_BHTS = scores_BHTS + visible
    weights_BHTS = scores_BHTS.softmax(-1)
    if dropout:
        weights_BHTS = F.dropout(weights_BHTS, dropout)
    y_BHTK = weights_BHTS @ v_BHSK
    return y_BHTK


def heads(q_BHTK: Tensor, k_BGSK: Tensor, *options: object, **more: object) -> str:
    """Return which query heads read which key/value head, as text."""
    H, G = q_BHTK.shape[-3], k_BGSK.shape[-3]
    if H == G:
        return f"each of {H} query heads has its own key/value head"
    if G == 1:
        return f"{H} query heads share the one key/value head"
    R = H // G
    pairs = [f"{g * R}–{g * R + R - 1} read {g}" for g in range(G)]
    return f"{R} query heads share a key/value head: {', '.join(pairs[:3] + ['…'] * (G > 3))}"


# call: (definition, function that returns a note about it)
DEFINITIONS = {F.scaled_dot_product_attention: (scaled_dot_product_attention, heads)}
