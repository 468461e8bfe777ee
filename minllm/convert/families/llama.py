"""Llama (2302.13971, 2407.21783)."""

from minllm.convert.ropes import rope, rope_settings
from minllm.convert.settings import ConfigJson, WithRope, attention_biases, llama_like, override
from minllm.schema.options import Count, Fraction, Natural, Positive

PREFIX = "model."
TABLE = {
    "embedding": "embed_tokens.weight",
    "layers.{i}.attn.before.*": "layers.{i}.input_layernorm.*",
    "layers.{i}.attn.words.attn.qkv.*": "layers.{i}.self_attn.[q k v]_proj.*",
    "layers.{i}.attn.words.attn.out.*": "layers.{i}.self_attn.o_proj.*",
    "layers.{i}.mlp.before.*": "layers.{i}.post_attention_layernorm.*",
    "layers.{i}.mlp.words.mlp.gate_up.*": "layers.{i}.mlp.[gate up]_proj.*",
    "layers.{i}.mlp.words.mlp.down.*": "layers.{i}.mlp.down_proj.*",
    "norm.*": "norm.*",
    "head.*": "lm_head.*",
}


class Config(WithRope):
    """The settings that LlamaConfig reads, with its defaults."""

    vocab_size: Count = 32000
    bos_token_id: Natural | None = 1
    eos_token_id: Natural | list[int] | None = 2
    hidden_size: Count = 4096
    intermediate_size: Count = 11008
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Count = 2048
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_dropout: Fraction | None = 0.0
    mlp_bias: bool = False


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config)
    ropes = rope(config, rope_settings(config))
    return [
        # the presets differ only in their RoPE, and the options of one RoPE are invalid for another
        "experiment=llama3" if "model/pos=rope_llama3" in ropes else "experiment=min_llama3",
        *llama_like(config),
        *attention_biases(config),
        override("model.mlp.activation", config.activation("hidden_act")),
        override("model.mlp.bias", config.take("mlp_bias")),
        *ropes,
    ]
