"""gpt-oss (2508.10925): local layers by turns, sinks, and experts whose weights are stacked."""

from minllm.convert.families.mixtral import experts
from minllm.convert.settings import Settings, attention_biases, layout, llama_like, overrides, rope
from minllm.convert.table import interleaved, transposed

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


def typed(config: Settings) -> list[str]:
    config.only("hidden_act", "silu")
    config.only("swiglu_alpha", 1.702)
    config.take("output_router_logits", default=False)  # whether the balance loss is returned too
    more = {
        "model.mlp.expert.limit": config.take("swiglu_limit", default=7.0),
        "model.local.mask.window": config.take("sliding_window"),
    }
    return [
        "experiment=gpt_oss",
        *llama_like(config, mlp="model.mlp.expert"),
        *attention_biases(config, usual=True),
        *experts(config),
        *overrides(more),
        layout(config, every=2),
        *rope(config, theta=150000.0),
    ]
