"""Linear attention with decay: a state of K × V numbers per head, S_t = a_t S_(t-1) + k_t vᵀ_t, y_t = Sᵀ_t q_t.

In chunks of L tokens, with c_i the sum of log a up to token i of its chunk, this is two matrix products, one with the
other tokens of the chunk and one with the state before it:

    y_i = Σ_{j ≤ i} exp(c_i − c_j) (q_i · k_j) v_j + exp(c_i) S₀ᵀ q_i
"""

from __future__ import annotations

import torch
from torch import Tensor

from minllm.model.kernels.installed import linear_attention, linear_kernel
from minllm.model.scans.chunks import Chunks, between_chunks

LOWEST, FEW = -5.0, 16
"""The smallest log decay of a channel, and the chunk length: the inverse of a chunk's decay is within fp32's range."""


def decaying_by_head(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_a_BTH: Tensor,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
    *,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Return y_BTHV and the last state_BHKV for one decay per head: Mamba-2's duality (2405.21060).

    Args:
        q_BTGK, k_BTGK: queries and keys; each of the G is shared by H / G consecutive heads.
        v_BTHV: values.
        log_a_BTH: the logarithm of the decay before each token, at most 0.
        state_BHKV: the state before the first token; None means 0.
        starts_BT: where each token's segment begins, see `Context.starts`.
        chunk: L.
    """
    if run := linear_kernel("fla.ops.simple_gla", "chunk_simple_gla", q_BTGK, state_BHKV, starts_BT):
        return linear_attention(
            run, q_BTGK, k_BTGK, v_BTHV, g=log_a_BTH, state_BHKV=state_BHKV, starts_BT=starts_BT
        )
    H, G = v_BTHV.shape[2], q_BTGK.shape[2]
    chunks = Chunks(q_BTGK.shape[1], chunk, starts_BT, q_BTGK.device)
    q_BCGLK, k_BCGLK, v_BCHLV, log_a_BCHL = (chunks.cut(x) for x in (q_BTGK, k_BTGK, v_BTHV, log_a_BTH))
    left = chunks.decays(log_a_BCHL)

    scores_BCGLL = q_BCGLK @ k_BCGLK.mT
    y_BCHLV = (scores_BCGLL.repeat_interleave(H // G, dim=2) * left.between) @ v_BCHLV
    # the heads that share a key are more columns of one product
    added_BCGKM = k_BCGLK.mT @ _beside(left.to_end[..., None] * v_BCHLV, G)
    before_BCHKV, state_BHKV = between_chunks(
        left.through[..., None, None], _apart(added_BCGKM, H), state_BHKV
    )
    from_before_BCHLV = _apart(q_BCGLK @ _beside(before_BCHKV, G), H)
    y_BCHLV = torch.addcmul(y_BCHLV, left.from_before[..., None], from_before_BCHLV)
    return chunks.join(y_BCHLV), state_BHKV


def decaying_by_channel(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_a_BTHK: Tensor,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return y_BTHV and the last state_BHKV for one decay per row of a state (GLA, 2312.06635).

    The arguments are those of `decaying_by_head`; a decay is at least exp(−5).
    """
    log_a_BTHK = log_a_BTHK.clamp(min=LOWEST)
    if run := linear_kernel("fla.ops.gla", "chunk_gla", q_BTHK, state_BHKV, starts_BT):
        return linear_attention(
            run, q_BTHK, k_BTHK, v_BTHV, g=log_a_BTHK, state_BHKV=state_BHKV, starts_BT=starts_BT
        )
    chunks = Chunks(q_BTHK.shape[1], FEW, starts_BT, q_BTHK.device)
    q_BCHLK, k_BCHLK, v_BCHLV, log_a_BCHLK = (chunks.cut(x) for x in (q_BTHK, k_BTHK, v_BTHV, log_a_BTHK))
    c_BCHLK = log_a_BCHLK.cumsum(-2)

    # the decay between two tokens is the quotient of their decays from the chunk's beginning
    decayed_q_BCHLK = q_BCHLK * c_BCHLK.exp()
    scores_BCHLL = decayed_q_BCHLK @ (k_BCHLK * (-c_BCHLK).exp()).mT
    y_BCHLV = scores_BCHLL.masked_fill(~chunks.visible_heads, 0) @ v_BCHLV

    end_BCH1K = c_BCHLK[..., -1:, :]
    added_BCHKV = (k_BCHLK * (end_BCH1K - c_BCHLK).exp()).mT @ chunks.only(chunks.stays, v_BCHLV)
    through_BCHK = chunks.only(chunks.goes_on, end_BCH1K[..., 0, :].exp())
    before_BCHKV, state_BHKV = between_chunks(through_BCHK[..., None], added_BCHKV, state_BHKV)
    y_BCHLV = y_BCHLV + chunks.only(chunks.reads, decayed_q_BCHLK) @ before_BCHKV
    return chunks.join(y_BCHLV), state_BHKV


def _beside(x_BCHLV: Tensor, groups: int) -> Tensor:
    """Put the heads that share a key beside each other: (B, C, G, L, H/G·V)."""
    return x_BCHLV.unflatten(2, (groups, -1)).transpose(3, 4).flatten(4)


def _apart(x_BCGLM: Tensor, heads: int) -> Tensor:
    """Take them apart again: (B, C, H, L, V)."""
    return x_BCGLM.unflatten(4, (heads // x_BCGLM.shape[2], -1)).transpose(3, 4).flatten(2, 3)
