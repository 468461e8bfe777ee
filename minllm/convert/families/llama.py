"""Llama (2302.13971, 2407.21783)."""

from minllm.convert.settings import Settings, attention_biases, llama_like, override, rope

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


def typed(config: Settings) -> list[str]:
    ropes = rope(config)
    return [
        # what differs is the rope alone, and options of one kind would stand in the way of another
        "experiment=llama3" if "model/pos=rope_llama3" in ropes else "experiment=min_llama3",
        *llama_like(config),
        *attention_biases(config),
        override("model.mlp.activation", config.activation("hidden_act")),
        override("model.mlp.bias", config.take("mlp_bias", default=False)),
        *ropes,
    ]
