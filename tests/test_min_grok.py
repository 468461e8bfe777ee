"""minGrok has no class in transformers: its oracle is the whole model written out, a token and an expert at a time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from minllm.config.compose import compose
from minllm.schema.building import build
from tests.tiny import VOCAB, tiny_cfg, tiny_model, tokens


def test_min_grok_is_what_it_says():
    model, batch = tiny_model("experiment=min_grok", randomised=True), tokens(1, 9)
    with torch.no_grad():
        difference = (model(batch) - slow_min_grok(model.state_dict(), batch[0])).abs().max()
    assert difference < 1e-4


def test_min_grok_has_992352_parameters():
    cfg = compose(["experiment=min_grok"])
    with torch.device("meta"):
        model = build(cfg.model, 128, build(cfg.norm))
    assert sum(p.numel() for p in model.parameters()) == 992_352


def slow_min_grok(weights: dict[str, torch.Tensor], tokens_T: torch.Tensor) -> torch.Tensor:
    """Return the logits (1, T, V) of a tiny minGrok."""
    cfg = tiny_cfg("experiment=min_grok").model
    x_TD = weights["embedding"][tokens_T] * math.sqrt(cfg.dim)
    for i in range(cfg.n_layers):
        attn = {name.removeprefix(f"layers.{i}.attn."): one for name, one in weights.items()}
        mlp = {name.removeprefix(f"layers.{i}.mlp."): one for name, one in weights.items()}
        normed_TD = rms(x_TD, attn["before.weight"])
        x_TD = x_TD + rms(slow_attention(attn, normed_TD, cfg.attn, cfg.pos.theta), attn["after.weight"])
        normed_TD = rms(x_TD, mlp["before.weight"])
        mixed_TD = torch.stack([slow_experts(mlp, x_D, cfg.mlp) for x_D in normed_TD])
        x_TD = x_TD + rms(mixed_TD, mlp["after.weight"])
    logits_TV = rms(x_TD, weights["norm.weight"]) @ weights["embedding"].T
    assert logits_TV.shape[-1] == VOCAB
    return logits_TV[None]


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def slow_attention(weights, x_TD, options, theta):
    H, K, T = options.n_heads, options.head_dim, len(x_TD)
    qkv = x_TD @ weights["words.attn.qkv.weight"].T
    q_THK = qkv[:, : H * K].view(T, H, K)
    k_TK, v_TK = qkv[:, H * K : H * K + K], qkv[:, H * K + K :]
    k_TK = torch.stack([turned(k_TK[t], t, theta) for t in range(T)])
    y_THK = torch.zeros(T, H, K)
    for t in range(T):
        for h in range(H):
            scores = k_TK[: t + 1] @ turned(q_THK[t, h], t, theta) / math.sqrt(K)
            y_THK[t, h] = scores.softmax(0) @ v_TK[: t + 1]
    return y_THK.flatten(1) @ weights["words.attn.out.weight"].T


def turned(x_K, t, theta):
    K, y_K = len(x_K), x_K.clone()
    for i in range(K // 2):
        angle = t / theta ** (2 * i / K)
        a, b = x_K[i], x_K[i + K // 2]
        y_K[i] = a * math.cos(angle) - b * math.sin(angle)
        y_K[i + K // 2] = b * math.cos(angle) + a * math.sin(angle)
    return y_K


def slow_experts(weights, x_D, options):
    p_E = (weights["words.mlp.router.score.weight"] @ x_D).softmax(0)
    best = sorted(range(options.n_experts), key=lambda e: -p_E[e])[: options.top_k]
    y_D = torch.zeros_like(x_D)
    for e in best:
        gate_F, up_F = (weights[f"words.mlp.experts.{e}.gate_up.weight"] @ x_D).chunk(2)
        y_D += (
            p_E[e]
            / p_E[best].sum()
            * (weights[f"words.mlp.experts.{e}.down.weight"] @ (F.gelu(gate_F) * up_F))
        )
    return y_D
