"""Presets against the classes of `transformers`: the same weights must give the same logits.

Every parameter is random at σ = 0.2, gains and biases included: at the usual initial values almost any bug passes.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from minllm.config import build, compose
from tests.tiny import VOCAB, T, tiny_cfg, tiny_model, tokens

transformers = pytest.importorskip(
    "transformers", reason="the oracle is not installed: pip install -e .[test]"
)


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(0.5 if param.ndim == 1 else 0, 0.2)
    return model.eval()


def assert_same_logits(preset: str, oracle: nn.Module, weights: dict[str, Tensor]) -> None:
    model = tiny_model(f"experiment={preset}")
    assert set(weights) == set(model.state_dict())
    model.load_state_dict(weights)
    batch = tokens(3)
    with torch.no_grad():
        ours, theirs = model(batch), oracle(batch).logits
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-4


def test_min_llama3():
    cfg = tiny_cfg("experiment=min_llama3").model
    oracle = randomised(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=cfg.dim,
                num_hidden_layers=cfg.n_layers,
                num_attention_heads=cfg.attn.n_heads,
                num_key_value_heads=cfg.attn.n_kv_heads,
                head_dim=cfg.attn.head_dim,
                intermediate_size=cfg.mlp.hidden,
                rms_norm_eps=1e-5,
                max_position_embeddings=T,
                tie_word_embeddings=False,
                attn_implementation="eager",
            )
        )
    )
    theirs = oracle.state_dict()
    weights = {
        "embedding": theirs["model.embed_tokens.weight"],
        "norm.weight": theirs["model.norm.weight"],
        "head.weight": theirs["lm_head.weight"],
    }
    for i in range(cfg.n_layers):
        them, us = f"model.layers.{i}", f"layers.{i}"
        qkv = [theirs[f"{them}.self_attn.{name}_proj.weight"] for name in "qkv"]
        gate_up = [theirs[f"{them}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
        weights |= {
            f"{us}.attn.before.weight": theirs[f"{them}.input_layernorm.weight"],
            f"{us}.attn.words.attn.qkv.weight": torch.cat(qkv),
            f"{us}.attn.words.attn.out.weight": theirs[f"{them}.self_attn.o_proj.weight"],
            f"{us}.mlp.before.weight": theirs[f"{them}.post_attention_layernorm.weight"],
            f"{us}.mlp.words.mlp.gate_up.weight": torch.cat(gate_up),
            f"{us}.mlp.words.mlp.down.weight": theirs[f"{them}.mlp.down_proj.weight"],
        }
    assert_same_logits("min_llama3", oracle, weights)


def test_gpt2():
    cfg = tiny_cfg("experiment=gpt2").model
    oracle = randomised(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=VOCAB,
                n_embd=cfg.dim,
                n_layer=cfg.n_layers,
                n_head=cfg.attn.n_heads,
                n_inner=cfg.mlp.hidden,
                n_positions=T,
                attn_implementation="eager",
            )
        )
    )
    theirs = oracle.state_dict()
    weights = {
        "embedding": theirs["transformer.wte.weight"],
        "position.weight": theirs["transformer.wpe.weight"],
        "norm.weight": theirs["transformer.ln_f.weight"],
        "norm.bias": theirs["transformer.ln_f.bias"],
    }
    places = {
        "attn.before": "ln_1",
        "attn.words.attn.qkv": "attn.c_attn",
        "attn.words.attn.out": "attn.c_proj",
        "mlp.before": "ln_2",
        "mlp.words.mlp.up": "mlp.c_fc",
        "mlp.words.mlp.down": "mlp.c_proj",
    }
    for i in range(cfg.n_layers):
        for us, them in places.items():
            weight = theirs[f"transformer.h.{i}.{them}.weight"]
            # GPT-2 keeps the matrices of its products transposed
            weights[f"layers.{i}.{us}.weight"] = weight.T if weight.ndim == 2 else weight
            weights[f"layers.{i}.{us}.bias"] = theirs[f"transformer.h.{i}.{them}.bias"]
    assert_same_logits("gpt2", oracle, weights)


def test_the_presets_have_the_published_sizes():
    """minLlama3 has 2,985,088 parameters at a vocabulary of 512, GPT-2 small 124,439,808 at 50,257."""
    for preset, vocab, params in (("min_llama3", 512, 2_985_088), ("gpt2", 50_257, 124_439_808)):
        cfg = compose([f"experiment={preset}"])
        with torch.device("meta"):
            model = build(cfg.model, vocab, build(cfg.norm))
        assert sum(p.numel() for p in model.parameters()) == params
