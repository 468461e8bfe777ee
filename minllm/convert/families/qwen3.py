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
    for kind in set(config.take("layer_types", default=[])):
        Settings({"layer_types": kind}, config.name).only("layer_types", "full_attention")
    return [
        "experiment=qwen3",
        *llama_like(config),
        *attention_biases(config),
        override("model.mlp.activation", config.activation("hidden_act")),
        *rope(config),
    ]
