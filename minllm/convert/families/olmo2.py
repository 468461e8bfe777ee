"""OLMo 2 (2501.00656): norms after the branches, and over the queries and keys of all heads together."""

from minllm.convert.ropes import rope, rope_settings
from minllm.convert.settings import ConfigJson, WithRope, attention_biases, llama_like, override
from minllm.schema.options import Count, Fraction, Natural, Positive

PREFIX = "model."
TABLE = {
    "embedding": "embed_tokens.weight",
    "layers.{i}.attn.words.attn.qkv.*": "layers.{i}.self_attn.[q k v]_proj.*",
    "layers.{i}.attn.words.attn.q_norm.*": "layers.{i}.self_attn.q_norm.*",
    "layers.{i}.attn.words.attn.k_norm.*": "layers.{i}.self_attn.k_norm.*",
    "layers.{i}.attn.words.attn.out.*": "layers.{i}.self_attn.o_proj.*",
    "layers.{i}.attn.after.*": "layers.{i}.post_attention_layernorm.*",
    "layers.{i}.mlp.words.mlp.gate_up.*": "layers.{i}.mlp.[gate up]_proj.*",
    "layers.{i}.mlp.words.mlp.down.*": "layers.{i}.mlp.down_proj.*",
    "layers.{i}.mlp.after.*": "layers.{i}.post_feedforward_layernorm.*",
    "norm.*": "norm.*",
    "head.*": "lm_head.*",
}


class Config(WithRope):
    """The settings that Olmo2Config reads, with its defaults."""

    vocab_size: Count = 50304
    bos_token_id: Natural | None = None
    eos_token_id: Natural | list[int] | None = 50279
    hidden_size: Count = 4096
    intermediate_size: Count = 11008
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Count = 2048
    rms_norm_eps: Positive = 1e-5
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_dropout: Fraction = 0.0
    # not a field of the class, but its layers read it
    head_dim: Count | None = None


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config)
    return [
        "experiment=olmo2",
        *llama_like(config),
        *attention_biases(config),
        override("model.mlp.activation", config.activation("hidden_act")),
        *rope(config, rope_settings(config)),
    ]
