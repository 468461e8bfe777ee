"""OLMo 2 (2501.00656): norms behind the branches, and over all heads' queries and keys together."""

from minllm.convert.settings import Settings, attention_biases, llama_like, override, rope

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


def typed(config: Settings) -> list[str]:
    return [
        "experiment=olmo2",
        *llama_like(config),
        *attention_biases(config),
        override("model.mlp.activation", config.activation("hidden_act")),
        *rope(config),
    ]
