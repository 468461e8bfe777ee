"""BLOOM (2211.05100): queries, keys and values packed by head, ALiBi, and a norm after the embedding."""

from minllm.convert.settings import ConfigJson, overrides
from minllm.convert.table import per_head
from minllm.schema.options import Count, Fraction, Natural, Positive

PREFIX = "transformer."
TABLE = {
    "embedding": "word_embeddings.weight",
    "embedding_norm.*": "word_embeddings_layernorm.*",
    "layers.{i}.attn.before.*": "h.{i}.input_layernorm.*",
    "layers.{i}.attn.words.attn.qkv.*": per_head("h.{i}.self_attention.query_key_value.*"),
    "layers.{i}.attn.words.attn.out.*": "h.{i}.self_attention.dense.*",
    "layers.{i}.mlp.before.*": "h.{i}.post_attention_layernorm.*",
    "layers.{i}.mlp.words.mlp.up.*": "h.{i}.mlp.dense_h_to_4h.*",
    "layers.{i}.mlp.words.mlp.down.*": "h.{i}.mlp.dense_4h_to_h.*",
    "norm.*": "ln_f.*",
    "head.*": "lm_head.*",
}


class Config:
    """The settings that BloomConfig reads, with its defaults."""

    aliases = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}

    vocab_size: Count = 250880
    bos_token_id: Natural | None = 1
    eos_token_id: Natural | list[int] | None = 2
    hidden_size: Count = 64
    n_layer: Count = 2
    n_head: Count = 8
    layer_norm_epsilon: Positive = 1e-5
    apply_residual_connection_post_layernorm: bool = False
    hidden_dropout: Fraction = 0.0
    attention_dropout: Fraction = 0.0
    tie_word_embeddings: bool = True
    # not a field of the class, but the class reads it
    n_embed: Count | None = None


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only("apply_residual_connection_post_layernorm", False)
    dim = config.take("n_embed") or config.take("hidden_size")
    config.ignored("hidden_size", dim)
    config.only("n_inner", None, 4 * dim)  # ignored
    return [
        "experiment=bloom",
        *overrides(
            {
                "model.dim": dim,
                "model.n_layers": config.take("n_layer"),
                "model.tie_embeddings": config.take("tie_word_embeddings"),
                "model.dropout": config.take("hidden_dropout"),
                "model.attn.n_heads": config.take("n_head"),
                "model.attn.dropout": config.take("attention_dropout"),
                "norm.eps": config.take("layer_norm_epsilon"),
            }
        ),
    ]
