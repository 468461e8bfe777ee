"""transformers' equivalent of a minllm configuration: the class with the same mixer, in the same sizes.

On a CPU, or without the packages that have their kernels, these classes run their plain PyTorch code.
"""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig
from torch import nn

ATTENTION = "attention"
"""The mixer if no option of model/rec is chosen."""


def their_model(vocab_size: int, cfg: DictConfig) -> nn.Module:
    return CLASSES[cfg.choices["model/rec"] or ATTENTION](vocab_size, cfg)


def llama(vocab_size: int, cfg: DictConfig) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    model, attn = cfg.model, cfg.model.attn
    return LlamaForCausalLM(
        LlamaConfig(
            **sizes(vocab_size, cfg),
            num_attention_heads=attn.n_heads,
            num_key_value_heads=attn.n_kv_heads,
            head_dim=attn.head_dim,
            intermediate_size=model.mlp.hidden,
            rms_norm_eps=cfg.norm.eps,
            rope_theta=model.pos.theta,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def mamba(vocab_size: int, cfg: DictConfig) -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    rec = cfg.model.rec
    return MambaForCausalLM(
        MambaConfig(
            **sizes(vocab_size, cfg),
            expand=rec.expand,
            state_size=rec.n_state,
            conv_kernel=rec.conv_width,
            time_step_rank=rec.dt_rank or "auto",
            layer_norm_epsilon=cfg.norm.eps,
            **NO_SPECIAL_TOKENS,
        )
    )


def mamba2(vocab_size: int, cfg: DictConfig) -> nn.Module:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    rec = cfg.model.rec
    return Mamba2ForCausalLM(
        Mamba2Config(
            **sizes(vocab_size, cfg),
            expand=rec.expand,
            num_heads=rec.expand * cfg.model.dim // rec.head_dim,
            head_dim=rec.head_dim,
            state_size=rec.n_state,
            n_groups=rec.n_groups,
            conv_kernel=rec.conv_width,
            layer_norm_epsilon=cfg.norm.eps,
            **NO_SPECIAL_TOKENS,
        )
    )


def recurrent_gemma(vocab_size: int, cfg: DictConfig) -> nn.Module:
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    rec = cfg.model.rec
    return RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            **sizes(vocab_size, cfg),
            block_types=["recurrent"],
            lru_width=rec.width,
            num_attention_heads=rec.n_blocks,  # the gates' matrices have as many blocks
            conv1d_width=rec.conv_width,
            intermediate_size=2 * cfg.model.mlp.hidden,  # gate and up together
            logits_soft_cap=cfg.model.softcap,
            rms_norm_eps=cfg.norm.eps,
            **NO_SPECIAL_TOKENS,
        )
    )


def qwen3_next(vocab_size: int, cfg: DictConfig) -> nn.Module:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    rec = cfg.model.rec
    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            **sizes(vocab_size, cfg),
            layer_types=["linear_attention"] * cfg.model.n_layers,
            linear_num_key_heads=rec.n_heads,
            linear_num_value_heads=rec.n_value_heads,
            linear_key_head_dim=rec.head_dim,
            linear_value_head_dim=rec.value_dim,
            linear_conv_kernel_dim=rec.conv_width,
            num_experts=0,  # makes its MLP dense
            intermediate_size=cfg.model.mlp.hidden,
            rms_norm_eps=cfg.norm.eps,
        )
    )


def sizes(vocab_size: int, cfg: DictConfig) -> dict[str, int | bool]:
    """Return the options whose names are the same in all of transformers' configurations."""
    return {
        "hidden_size": cfg.model.dim,
        "num_hidden_layers": cfg.model.n_layers,
        "vocab_size": vocab_size,
        "tie_word_embeddings": True,
    }


NO_SPECIAL_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}

CLASSES: dict[str, Callable[[int, DictConfig], nn.Module]] = {
    ATTENTION: llama,
    "gated_deltanet": qwen3_next,
    "mamba": mamba,
    "mamba2": mamba2,
    "rglru": recurrent_gemma,
}
