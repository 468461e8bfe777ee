"""The delta rule (2406.06484): each token replaces the value stored for its key instead of adding to it.

    S_t = a_t (1 − β_t k_t kᵀ_t) S_(t-1) + β_t k_t vᵀ_t        y_t = Sᵀ_t q_t

In chunks, with c_i the sum of log a up to token i: S_i = exp(c_i) S₀ + Σ_{j ≤ i} exp(c_i − c_j) k_j uᵀ_j, where u_j is
what token j adds. That depends on S₀, and on what the tokens before it have added, which gives one triangular system
per chunk (the WY form):

    u_i = β_i (v_i − exp(c_i) S₀ᵀ k_i − Σ_{j < i} exp(c_i − c_j) (k_i · k_j) u_j)
"""

from __future__ import annotations

import torch
from torch import Tensor

from minllm.model.kernels.installed import linear_attention, linear_kernel
from minllm.model.scans.chunks import Chunks

KERNEL, GATED_KERNEL = ("delta_rule", "chunk_delta_rule"), ("gated_delta_rule", "chunk_gated_delta_rule")


def delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    log_a_BTH: Tensor | None = None,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
    *,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Return y_BTHV and the last state_BHKV.

    Args:
        q_BTHK, k_BTHK: queries and keys; keys have L2 norm 1 or less.
        v_BTHV: values.
        beta_BTH: how much of the stored value is replaced, from 0 to 1, or to 2 to replace it by its negative.
        log_a_BTH: the logarithm of the decay before each token (gated delta rule, 2412.06464); None means no decay.
        state_BHKV: the state before the first token; None means 0.
        starts_BT: where each token's segment begins, see `Context.starts`.
        chunk: L.
    """
    module, name = KERNEL if log_a_BTH is None else GATED_KERNEL
    if run := linear_kernel(f"fla.ops.{module}", name, q_BTHK, state_BHKV, starts_BT):
        gates = {"beta": beta_BTH} if log_a_BTH is None else {"beta": beta_BTH, "g": log_a_BTH}
        return linear_attention(
            run, q_BTHK, k_BTHK, v_BTHV, **gates, state_BHKV=state_BHKV, starts_BT=starts_BT
        )
    chunks = Chunks(q_BTHK.shape[1], chunk, starts_BT, q_BTHK.device)
    log_a_BTH = torch.zeros_like(beta_BTH, dtype=torch.float32) if log_a_BTH is None else log_a_BTH
    q, k, v, beta_BCHL, log_a_BCHL = (chunks.cut(x) for x in (q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_a_BTH))
    left = chunks.decays(log_a_BCHL)

    # u = added − replaced @ S₀
    beta_k = beta_BCHL[..., None] * k
    system_BCHLL = ((beta_k @ k.mT) * left.between).tril(-1)
    both = torch.cat([beta_BCHL[..., None] * v, left.from_before[..., None] * beta_k], dim=-1)
    if chunks.length > 1:  # a single token has no other to take into account
        # cheaper than solving directly: the inverse has fewer columns than `both`
        identity_LL = torch.eye(chunks.length, device=k.device)
        inverse_BCHLL = torch.linalg.solve_triangular(
            system_BCHLL, identity_LL, upper=False, unitriangular=True
        )
        both = inverse_BCHLL @ both
    added_BCHLV, replaced_BCHLK = both.split([v.shape[-1], k.shape[-1]], dim=-1)

    scores_BCHLL = (q @ k.mT) * left.between
    reads_BCHLK = left.from_before[..., None] * q
    keys_BCHLK = left.to_end[..., None] * k
    B, _, H, _, K = k.shape
    state = v.new_zeros(B, H, K, v.shape[-1]) if state_BHKV is None else state_BHKV
    parts = (
        added_BCHLV,
        replaced_BCHLK,
        scores_BCHLL,
        reads_BCHLK,
        keys_BCHLK.mT,
        left.through[..., None, None],
    )
    ys = []
    for added, replaced, scores, reads, keys, through in zip(*(x.unbind(1) for x in parts)):
        u_BHLV = added - replaced @ state
        ys.append(scores @ u_BHLV + reads @ state)
        state = through * state + keys @ u_BHLV
    return chunks.join(torch.stack(ys, dim=1)), state
