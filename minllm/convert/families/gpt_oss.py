"""gpt-oss (2508.10925): alternating local layers, attention sinks, and experts with stacked weights."""

from minllm.convert.families.gemma2 import local_overrides
from minllm.convert.families.mixtral import experts
from minllm.convert.ropes import rope, rope_settings
from minllm.convert.settings import (
    ConfigJson,
    WithRope,
    attention_biases,
    layer_types,
    layout,
    llama_like,
    override,
)
from minllm.convert.table import interleaved, transposed
from minllm.schema.options import Count, Fraction, Natural, NonNegative, Positive

PREFIX = "model."
TABLE = {
    "embedding": "embed_tokens.weight",
    "layers.{i}.{attn}.before.*": "layers.{i}.input_layernorm.*",
    "layers.{i}.{attn}.words.{attn}.qkv.*": "layers.{i}.self_attn.[q k v]_proj.*",
    "layers.{i}.{attn}.words.{attn}.core.sinks_H": "layers.{i}.self_attn.sinks",
    "layers.{i}.{attn}.words.{attn}.out.*": "layers.{i}.self_attn.o_proj.*",
    "layers.{i}.mlp.before.*": "layers.{i}.post_attention_layernorm.*",
    "layers.{i}.mlp.words.mlp.router.score.*": "layers.{i}.mlp.router.*",
    "layers.{i}.mlp.words.mlp.experts.{e}.gate_up.weight": interleaved("layers.{i}.mlp.experts.gate_up_proj"),
    "layers.{i}.mlp.words.mlp.experts.{e}.gate_up.bias": interleaved(
        "layers.{i}.mlp.experts.gate_up_proj_bias"
    ),
    "layers.{i}.mlp.words.mlp.experts.{e}.down.weight": transposed("layers.{i}.mlp.experts.down_proj"),
    "layers.{i}.mlp.words.mlp.experts.{e}.down.bias": "layers.{i}.mlp.experts.down_proj_bias",
    "norm.*": "norm.*",
    "head.*": "lm_head.*",
}


class Config(WithRope):
    """The settings that GptOssConfig reads, with its defaults."""

    vocab_size: Count = 201088
    bos_token_id: Natural | None = None
    eos_token_id: Natural | list[int] | None = None
    hidden_size: Count = 2880
    intermediate_size: Count = 2880
    num_hidden_layers: Count = 36
    num_attention_heads: Count = 64
    num_key_value_heads: Count = 8
    head_dim: Count = 64
    hidden_act: str = "silu"
    max_position_embeddings: Count = 131072
    rms_norm_eps: Positive = 1e-5
    tie_word_embeddings: bool = False
    sliding_window: Count | None = 128
    layer_types: list[str] | None = None
    attention_bias: bool = True
    attention_dropout: Fraction = 0.0
    num_local_experts: Count = 128
    num_experts_per_tok: Count = 4
    swiglu_alpha: Positive = 1.702
    swiglu_limit: Positive = 7.0
    router_aux_loss_coef: NonNegative = 0.001
    output_router_logits: bool = False
    rope_theta: Positive = 150000.0


DEFAULT_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""The RoPE settings of a config.json that has none."""


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only_silu()
    config.only("swiglu_alpha", 1.702)
    config.unused("output_router_logits")  # whether the balance loss is returned too
    config.ignored("experts_per_token", config.take("num_experts_per_tok"))
    kinds = layer_types(config, every=2)
    settings = rope_settings(config, default=DEFAULT_ROPE)
    config.ignored("initial_context_length", settings.get("original_max_position_embeddings"))
    return [
        "experiment=gpt_oss",
        *llama_like(config, mlp="model.mlp.expert"),
        *attention_biases(config),
        *experts(config),
        override("model.mlp.expert.limit", config.take("swiglu_limit")),
        *layout(kinds),
        *local_overrides(config, kinds),
        *rope(config, settings, preset=("factor", "original_len", "truncate")),
    ]
