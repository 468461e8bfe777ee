"""Mixtral (2401.04088): Llama's names, and experts instead of the MLP."""

from minllm.convert.families import llama
from minllm.convert.ropes import rope, rope_settings
from minllm.convert.settings import ConfigJson, WithRope, llama_like, override, overrides
from minllm.schema.options import Count, Fraction, Natural, NonNegative, Positive

PREFIX = llama.PREFIX
TABLE = {
    **llama.TABLE,
    "layers.{i}.mlp.words.mlp.router.score.*": "layers.{i}.block_sparse_moe.gate.*",
    "layers.{i}.mlp.words.mlp.experts.{e}.gate_up.*": "layers.{i}.block_sparse_moe.experts.{e}.[w1 w3].*",
    "layers.{i}.mlp.words.mlp.experts.{e}.down.*": "layers.{i}.block_sparse_moe.experts.{e}.w2.*",
}


class Config(WithRope):
    """The settings that MixtralConfig reads, with its defaults."""

    aliases = {"num_experts": "num_local_experts"}

    vocab_size: Count = 32000
    bos_token_id: Natural | None = 1
    eos_token_id: Natural | list[int] | None = 2
    hidden_size: Count = 4096
    intermediate_size: Count = 14336
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 8
    head_dim: Count | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Count = 131072
    rms_norm_eps: Positive = 1e-5
    tie_word_embeddings: bool = False
    sliding_window: Count | None = None
    attention_dropout: Fraction = 0.0
    num_experts_per_tok: Count = 2
    num_local_experts: Count = 8
    output_router_logits: bool = False
    router_aux_loss_coef: NonNegative = 0.001
    router_jitter_noise: NonNegative = 0.0
    rope_theta: Positive = 1e6


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only("sliding_window", None)
    config.only("router_jitter_noise", 0.0)
    config.unused("output_router_logits")  # whether the balance loss is returned too
    return [
        "experiment=mixtral",
        *llama_like(config, mlp="model.mlp.expert"),
        override("model.mlp.expert.activation", config.activation("hidden_act")),
        *experts(config),
        *rope(config, rope_settings(config)),
    ]


def experts(config: ConfigJson) -> list[str]:
    return overrides(
        {
            "model.mlp.n_experts": config.take("num_local_experts"),
            "model.mlp.top_k": config.take("num_experts_per_tok"),
            "model.mlp.router.balance": config.take("router_aux_loss_coef"),
        }
    )
