"""Oracles of the presets: classes of `transformers` at tiny sizes, and how models are compared with theirs."""

from __future__ import annotations

import functools
import tempfile

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import nn

from minllm.config.compose import compose
from minllm.model.lm import LM
from tests.tiny import SIZES_OF, VOCAB, T, tokens

W = SIZES_OF["window"]
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,  # four of them are more than the width
    intermediate_size=40,
    max_position_embeddings=T,
    rms_norm_eps=1e-3,
)
SOME = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}


def theta(number: float, **scaling) -> dict:
    return {"rope_theta": number, "rope_type": "default", **scaling}


LLAMA3 = theta(
    500.0,
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=3.0,
    original_max_position_embeddings=16,
)
YARN = theta(
    500.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=2.0, beta_slow=0.5
)
GEMMA3 = {"sliding_attention": theta(20.0), "full_attention": theta(500.0)}

TINY = {
    "llama3": ("Llama", SIZES | dict(rope_parameters=LLAMA3)),
    "min_llama3": ("Llama", SIZES | dict(rope_parameters=theta(10000.0), num_key_value_heads=1)),
    "gemma": ("Gemma", SIZES | dict(num_key_value_heads=1)),
    "gemma2": (
        "Gemma2",
        # bounds so near that they bite, and a scale that isn't 1/√12
        SIZES
        | dict(
            num_hidden_layers=3,
            sliding_window=W,
            query_pre_attn_scalar=3,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    "gemma3": (
        "Gemma3Text",
        SIZES | dict(num_hidden_layers=8, sliding_window=W, query_pre_attn_scalar=3, rope_parameters=GEMMA3),
    ),
    "qwen3": ("Qwen3", SIZES | dict(rope_parameters=theta(500.0))),
    # its heads are as wide as the model allows
    "olmo2": ("Olmo2", {key: SIZES[key] for key in SIZES if key != "head_dim"}),
    "gptj": (
        "GPTJ",
        dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, rotary_dim=4, n_positions=T, n_inner=40),
    ),
    "gpt_neox": (
        "GPTNeoX",
        SOME | dict(intermediate_size=40, max_position_embeddings=T, num_attention_heads=2),
    ),
    # a number of heads that is no power of two takes its slopes in between
    "mpt": ("Mpt", dict(vocab_size=VOCAB, d_model=36, n_heads=6, n_layers=2, max_seq_len=T)),
    "bloom": ("Bloom", dict(vocab_size=VOCAB, hidden_size=36, n_head=6, n_layer=2)),
    "mixtral": (
        "Mixtral",
        SIZES | dict(num_local_experts=4, num_experts_per_tok=2, rope_parameters=theta(500.0)),
    ),
    "gpt_oss": (
        "GptOss",
        SIZES
        | dict(
            num_hidden_layers=3,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=W,
            swiglu_limit=1.5,  # so near that it bites
            rope_parameters=YARN | dict(truncate=False),
        ),
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {key: SIZES[key] for key in SIZES if key not in ("head_dim", "num_key_value_heads")}
        | dict(
            num_hidden_layers=2,
            num_key_value_heads=4,
            rms_norm_eps=1e-6,
            q_lora_rank=10,
            kv_lora_rank=12,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=6,
            first_k_dense_replace=1,
            moe_intermediate_size=24,
            n_routed_experts=8,
            n_shared_experts=2,
            num_experts_per_tok=3,
            n_group=4,
            topk_group=2,
            rope_parameters=YARN | dict(mscale=0.7, mscale_all_dim=1.3),
        ),
    ),
    "mamba": (
        "Mamba",
        dict(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=3,
            time_step_rank=5,
            use_bias=True,
        ),
    ),
    "mamba2": (
        "Mamba2",
        dict(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_heads=8,
            head_dim=8,
            n_groups=2,
            state_size=3,
            chunk_size=7,
            use_bias=True,
        ),
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        {key: SIZES[key] for key in SIZES if key != "max_position_embeddings" and key != "head_dim"}
        | dict(num_hidden_layers=4, attention_window_size=W, logits_soft_cap=3.0, lru_width=32),
    ),
    "jamba": (
        "Jamba",
        {key: SIZES[key] for key in SIZES if key != "head_dim"}
        | dict(
            num_hidden_layers=6,
            num_experts=4,
            attn_layer_period=3,
            attn_layer_offset=1,
            mamba_d_state=3,
            mamba_dt_rank=5,
            mamba_proj_bias=True,
        ),
    ),
    "bamba": (
        "Bamba",
        {key: SIZES[key] for key in SIZES if key != "head_dim"}
        | dict(
            num_hidden_layers=4,
            attn_layer_indices=[2],
            mamba_n_heads=8,
            mamba_n_groups=2,
            mamba_d_state=3,
            mamba_chunk_size=7,
        ),
    ),
    "qwen3_next": (
        "Qwen3Next",
        SIZES
        | dict(
            num_hidden_layers=4,
            num_experts=0,
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=6,
            linear_value_head_dim=10,
            rope_parameters=theta(500.0, partial_rotary_factor=0.5),
        ),
    ),
    # distances and depths at which both directions' buckets and both stacks differ
    "t5": (
        "T5",
        dict(
            vocab_size=VOCAB,
            d_model=32,
            d_kv=6,
            d_ff=40,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=12,
            decoder_start_token_id=0,
        ),
    ),
    "bart": (
        "Bart",
        dict(
            vocab_size=VOCAB,
            d_model=32,
            encoder_layers=2,
            decoder_layers=3,
            encoder_attention_heads=2,
            decoder_attention_heads=4,
            encoder_ffn_dim=24,
            decoder_ffn_dim=40,
            max_position_embeddings=T,
        ),
    ),
    "gpt2": ("GPT2", dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_inner=40, n_positions=T)),
}
"""For each preset its class in transformers, and sizes at which each setting matters."""


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            # Gemma's gains are 1 + w
            is_1p = "Gemma" in type(module).__name__ and "Norm" in type(module).__name__
            for param in module.parameters(recurse=False):
                param.normal_(0.5 if param.ndim == 1 and not is_1p else 0, 0.2)
            if hasattr(module, "e_score_correction_bias"):
                module.e_score_correction_bias.normal_(0, 0.2)
    return model.eval()


def saved(oracle: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights by the names that published files have, which are not always those of the class."""
    with tempfile.TemporaryDirectory() as folder:
        oracle.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


@torch.no_grad()
def both_logits(model: LM, oracle: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    batch, source = tokens(3), tokens(3, T - 5, seed=1)
    if model.encoder is None:
        return model(batch), oracle(batch).logits
    return model(batch, source_BS=source), oracle(source, decoder_input_ids=batch).logits


@functools.lru_cache(1)  # the preset that is compared is also counted
def composed(*words: str) -> DictConfig:
    return compose(words)


def nodes(*words: str) -> dict:
    """Return what makes the model, as a configuration has it."""
    cfg = OmegaConf.to_container(composed(*words), resolve=True)
    return {name: cfg[name] for name in ("model", "norm")} | {"seq_len": cfg["data"]["seq_len"]}
