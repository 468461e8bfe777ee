"""Gemma 2 (2408.00118): a norm on each side of each branch, and two kinds of layers."""

from minllm.convert.settings import Settings, layout, llama_like, overrides, rope

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


def typed(config: Settings) -> list[str]:
    softcaps = {
        "model.softcap": config.take("final_logit_softcapping", default=30.0),
        "model.attn.softcap": config.take("attn_logit_softcapping", default=50.0),
    }
    return ["experiment=gemma2", *alike(config), *overrides(softcaps), layout(config, every=2), *rope(config)]


def alike(config: Settings) -> list[str]:
    """Return what Gemma 2 and Gemma 3 say in the same words."""
    config.only("hidden_activation", "gelu_pytorch_tanh")
    config.only("hidden_act", "gelu_pytorch_tanh", "gelu")  # read by nobody
    config.only("use_bidirectional_attention", None, False)
    config.only("attention_bias", False)
    more = {
        "model.attn.scale": config.take("query_pre_attn_scalar", default=256) ** -0.5,
        "model.local.mask.window": config.take("sliding_window"),
    }
    return [*llama_like(config, tied=True), *overrides(more)]
