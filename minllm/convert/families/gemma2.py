"""Gemma 2 (2408.00118): norms before and after each branch, and two kinds of layers."""

from minllm.convert.ropes import rope, rope_settings
from minllm.convert.settings import (
    ConfigJson,
    WithRope,
    attention_biases,
    layer_types,
    layout,
    llama_like,
    override,
    overrides,
)
from minllm.errors import UserError
from minllm.schema.options import Count, Fraction, Natural, Positive

PREFIX = "model."
TABLE = {
    "embedding": "embed_tokens.weight",
    "layers.{i}.{attn}.before.*": "layers.{i}.input_layernorm.*",
    "layers.{i}.{attn}.words.{attn}.qkv.*": "layers.{i}.self_attn.[q k v]_proj.*",
    "layers.{i}.{attn}.words.{attn}.out.*": "layers.{i}.self_attn.o_proj.*",
    "layers.{i}.{attn}.after.*": "layers.{i}.post_attention_layernorm.*",
    "layers.{i}.mlp.before.*": "layers.{i}.pre_feedforward_layernorm.*",
    "layers.{i}.mlp.words.mlp.gate_up.*": "layers.{i}.mlp.[gate up]_proj.*",
    "layers.{i}.mlp.words.mlp.down.*": "layers.{i}.mlp.down_proj.*",
    "layers.{i}.mlp.after.*": "layers.{i}.post_feedforward_layernorm.*",
    "norm.*": "norm.*",
    "head.*": "lm_head.*",
}


class Config(WithRope):
    """The settings that Gemma2Config reads, with its defaults."""

    vocab_size: Count = 256000
    bos_token_id: Natural | None = 2
    eos_token_id: Natural | list[int] | None = 1
    hidden_size: Count = 2304
    intermediate_size: Count = 9216
    num_hidden_layers: Count = 26
    num_attention_heads: Count = 8
    num_key_value_heads: Count = 4
    head_dim: Count = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: Count = 8192
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    attention_dropout: Fraction | None = 0.0
    query_pre_attn_scalar: Count = 256
    sliding_window: Count | None = 4096
    layer_types: list[str] | None = None
    final_logit_softcapping: Positive | None = 30.0
    attn_logit_softcapping: Positive | None = 50.0
    use_bidirectional_attention: bool | None = None


def to_overrides(config: ConfigJson) -> list[str]:
    kinds = layer_types(config.declare(Config), every=2)
    softcap = config.take("attn_logit_softcapping")
    return [
        "experiment=gemma2",
        *shared_overrides(config, kinds),
        override("model.attn.softcap", softcap),
        *rope(config, rope_settings(config)),
    ]


def shared_overrides(config: ConfigJson, kinds: list[str]) -> list[str]:
    """Return the overrides for the settings that Gemma 2 and Gemma 3 share."""
    config.only("hidden_act", "gelu_pytorch_tanh", "gelu")  # ignored
    config.only("use_bidirectional_attention", None, False)
    more = {
        "model.attn.scale": config.take("query_pre_attn_scalar") ** -0.5,
        "model.softcap": config.take("final_logit_softcapping"),
        "model.mlp.activation": config.activation("hidden_activation"),
    }
    return [
        *llama_like(config),
        *(attention_biases(config) if "full_attention" in kinds else []),
        *overrides(more),
        *layout(kinds),
        *local_overrides(config, kinds),
    ]


def local_overrides(config: ConfigJson, kinds: list[str]) -> list[str]:
    """Return the overrides for the local layers, if there are any."""
    window = config.take("sliding_window")
    if "sliding_attention" not in kinds:
        return []
    if window is None:
        raise UserError(f"{config.name} has layers of type sliding_attention, but no sliding_window.")
    return [override("model.local.mask.window", window), *attention_biases(config, "model.local")]
