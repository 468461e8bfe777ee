"""Gemma 2 (2408.00118): a norm on each side of each branch, and two kinds of layers."""

from minllm.convert.settings import Settings, layout, llama_like, override, overrides, rope

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
    if "layer_types" not in config.values:  # files before version 5 leave it to the reader
        layers = range(config.take("num_hidden_layers"))
        config.values["layer_types"] = [("sliding_attention", "full_attention")[i % 2] for i in layers]
    softcap = override("model.attn.softcap", config.take("attn_logit_softcapping", default=50.0))
    config.values.setdefault("final_logit_softcapping", 30.0)
    return ["experiment=gemma2", softcap, *alike(config), *rope(config)]


def alike(config: Settings) -> list[str]:
    """Return what Gemma 2 and Gemma 3 say in the same words."""
    config.only("hidden_activation", "gelu_pytorch_tanh")
    config.only("hidden_act", "gelu_pytorch_tanh", "gelu")  # read by nobody
    config.only("use_bidirectional_attention", None, False)
    config.only("attention_bias", False)
    config.values.setdefault("tie_word_embeddings", True)
    return [
        *llama_like(config),
        layout(config),
        *overrides(
            {
                "model.softcap": config.take("final_logit_softcapping", default=None),
                "model.attn.scale": config.take("query_pre_attn_scalar", default=256) ** -0.5,
                "model.local.mask.window": config.take("sliding_window"),
            }
        ),
    ]
