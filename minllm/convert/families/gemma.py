"""Gemma (2403.08295): Llama's names, and the approximate GELU whatever the file says."""

from minllm.convert.families.llama import PREFIX, TABLE
from minllm.convert.ropes import rope, rope_settings
from minllm.convert.settings import ConfigJson, WithRope, attention_biases, llama_like, override
from minllm.schema.options import Count, Fraction, Natural, Positive

__all__ = ["PREFIX", "TABLE", "to_overrides"]


class Config(WithRope):
    """The settings that GemmaConfig reads, with its defaults."""

    vocab_size: Count = 256000
    bos_token_id: Natural | None = 2
    eos_token_id: Natural | list[int] | None = 1
    hidden_size: Count = 3072
    intermediate_size: Count = 24576
    num_hidden_layers: Count = 28
    num_attention_heads: Count = 16
    num_key_value_heads: Count = 16
    head_dim: Count = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: Count = 8192
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    attention_dropout: Fraction = 0.0
    use_bidirectional_attention: bool | None = None


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only("use_bidirectional_attention", None, False)
    config.only("hidden_activation", None, "gelu_pytorch_tanh")  # ignored
    activation = config.activation("hidden_act")
    return [
        "experiment=gemma",
        *llama_like(config),
        *attention_biases(config),
        override("model.mlp.activation", "gelu_tanh" if config.take("hidden_act") == "gelu" else activation),
        *rope(config, rope_settings(config)),
    ]
