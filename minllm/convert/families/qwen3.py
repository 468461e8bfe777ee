"""Qwen3 (2505.09388): Llama's names, and norms of each head's queries and keys."""

from minllm.convert.families import llama
from minllm.convert.settings import Settings, attention_biases, llama_like, override, rope

PREFIX = llama.PREFIX
TABLE = {
    **llama.TABLE,
    "layers.{i}.attn.words.attn.q_norm.*": "layers.{i}.self_attn.q_norm.*",
    "layers.{i}.attn.words.attn.k_norm.*": "layers.{i}.self_attn.k_norm.*",
}


def typed(config: Settings) -> list[str]:
    config.only("use_sliding_window", False)
    config.take("sliding_window", default=None)  # nothing uses it
    layers = config.take("num_hidden_layers")
    config.only("layer_types", None, ["full_attention"] * layers)
    return [
        "experiment=qwen3",
        *llama_like(config),
        *attention_biases(config),
        override("model.mlp.activation", config.activation("hidden_act")),
        *rope(config),
    ]
