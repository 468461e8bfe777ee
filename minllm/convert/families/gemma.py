"""Gemma (2403.08295): Llama's names, and a GELU that is the approximate one whatever the file says."""

from minllm.convert.families.llama import PREFIX, TABLE
from minllm.convert.settings import Settings, attention_biases, llama_like, rope

__all__ = ["PREFIX", "TABLE", "typed"]


def typed(config: Settings) -> list[str]:
    config.only("hidden_act", "gelu_pytorch_tanh", "gelu")
    config.only("hidden_activation", None, "gelu_pytorch_tanh")
    config.only("use_bidirectional_attention", None, False)
    return ["experiment=gemma", *llama_like(config, tied=True), *attention_biases(config), *rope(config)]
