"""Qwen3 (2505.09388): Llama's names, and norms of each head's queries and keys."""

from minllm.convert.families import llama
from minllm.convert.ropes import rope, rope_settings
from minllm.convert.settings import OLDER, ConfigJson, WithRope, attention_biases, llama_like, override
from minllm.errors import UserError
from minllm.schema.options import Count, Fraction, Natural, Positive

PREFIX = llama.PREFIX
TABLE = {
    **llama.TABLE,
    "layers.{i}.attn.words.attn.q_norm.*": "layers.{i}.self_attn.q_norm.*",
    "layers.{i}.attn.words.attn.k_norm.*": "layers.{i}.self_attn.k_norm.*",
}


class Config(WithRope):
    """The settings that Qwen3Config reads, with its defaults."""

    vocab_size: Count = 151936
    bos_token_id: Natural | None = None
    eos_token_id: Natural | list[int] | None = None
    hidden_size: Count = 4096
    intermediate_size: Count = 22016
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = 32
    head_dim: Count = 128
    hidden_act: str = "silu"
    max_position_embeddings: Count = 32768
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Count | None = 4096
    max_window_layers: Natural = 28
    layer_types: list[str] | None = None
    attention_dropout: Fraction = 0.0


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config)
    refuse_windows(config)
    return [
        "experiment=qwen3",
        *llama_like(config),
        *attention_biases(config),
        override("model.mlp.activation", config.activation("hidden_act")),
        *rope(config, rope_settings(config)),
    ]


def refuse_windows(config: ConfigJson) -> None:
    """Reject a model with local layers, which the preset doesn't have."""
    n_layers, from_layer = config.take("num_hidden_layers"), config.take("max_window_layers")
    window = config.take("sliding_window")
    window = window if config.take("use_sliding_window") else None
    kinds = config.take("layer_types")
    if kinds is None:
        full = n_layers if window is None else min(from_layer, n_layers)
        kinds = ["full_attention"] * full + ["sliding_attention"] * (n_layers - full)
    if [OLDER.get(kind, kind) for kind in kinds] != ["full_attention"] * n_layers:
        raise UserError(
            f"{config.name} has layers that aren't of type full_attention, but minllm's qwen3 has no others: see its"
            " layer_types, use_sliding_window, and max_window_layers."
        )
