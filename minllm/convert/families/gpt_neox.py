"""GPT-NeoX (2204.06745) and Pythia: queries, keys and values packed by head, and two parallel norms."""

from typing import Any

from minllm.convert.ropes import either_form, rope
from minllm.convert.settings import ConfigJson, WithRope, attention_biases, overrides
from minllm.convert.table import per_head
from minllm.schema.options import Count, Fraction, Natural, Positive

PREFIX = "gpt_neox."
TABLE = {
    "embedding": "embed_in.weight",
    "layers.{i}.attn+mlp.before.attn.*": "layers.{i}.input_layernorm.*",
    "layers.{i}.attn+mlp.before.mlp.*": "layers.{i}.post_attention_layernorm.*",
    "layers.{i}.attn+mlp.words.attn.qkv.*": per_head("layers.{i}.attention.query_key_value.*"),
    "layers.{i}.attn+mlp.words.attn.out.*": "layers.{i}.attention.dense.*",
    "layers.{i}.attn+mlp.words.mlp.up.*": "layers.{i}.mlp.dense_h_to_4h.*",
    "layers.{i}.attn+mlp.words.mlp.down.*": "layers.{i}.mlp.dense_4h_to_h.*",
    "norm.*": "final_layer_norm.*",
    "head.*": "lm_head.*",
}
RENAMED = {"embed_out.": "lm_head."}  # in files before version 5


class Config(WithRope):
    """The settings that GPTNeoXConfig reads, with its defaults."""

    vocab_size: Count = 50432
    bos_token_id: Natural | None = 0
    eos_token_id: Natural | list[int] | None = 2
    hidden_size: Count = 6144
    num_hidden_layers: Count = 44
    num_attention_heads: Count = 64
    intermediate_size: Count = 24576
    hidden_act: str = "gelu"
    attention_dropout: Fraction = 0.0
    hidden_dropout: Fraction = 0.0
    max_position_embeddings: Count = 2048
    layer_norm_eps: Positive = 1e-5
    tie_word_embeddings: bool = False
    use_parallel_residual: bool = True
    attention_bias: bool = True
    # before version 5
    rotary_emb_base: Positive = 10000.0
    rotary_pct: Fraction = 0.25


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only("use_parallel_residual", True)
    dim, heads = config.take("hidden_size"), config.take("num_attention_heads")
    config.ignored("head_dim", dim // heads)
    return [
        "experiment=gpt_neox",
        *overrides(
            {
                "model.dim": dim,
                "model.n_layers": config.take("num_hidden_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings"),
                "model.dropout": config.take("hidden_dropout"),
                "model.attn.n_heads": heads,
                "model.attn.dropout": config.take("attention_dropout"),
                "model.mlp.hidden": config.take("intermediate_size"),
                "model.mlp.activation": config.activation("hidden_act"),
                "norm.eps": config.take("layer_norm_eps"),
                "data.seq_len": config.take("max_position_embeddings"),
            }
        ),
        *attention_biases(config),
        *rope(config, rope_settings(config), partial=True, width=dim // heads),
    ]


def rope_settings(config: ConfigJson) -> dict[str, Any]:
    """Return the RoPE settings, which had other names in this family before version 5."""
    settings = either_form(config)
    names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    for name, older in names.items():
        settings.setdefault(name, config.take(older))
        config.ignored(older, settings[name])
        config.ignored(name, settings[name])
    return settings
