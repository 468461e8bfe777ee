"""BLOOM (2211.05100): queries, keys and values packed for each head, ALiBi, a norm behind the embedding."""

from minllm.convert.settings import Settings, overrides
from minllm.convert.table import per_head

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


def typed(config: Settings) -> list[str]:
    config.only("apply_residual_connection_post_layernorm", False)
    dim = config.take("hidden_size", "n_embed")
    config.only("n_inner", None, 4 * dim)
    return [
        "experiment=bloom",
        *overrides(
            {
                "model.dim": dim,
                "model.n_layers": config.take("n_layer", "num_hidden_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings", default=True),
                "model.dropout": config.take("hidden_dropout", default=0.0),
                "model.attn.n_heads": config.take("n_head", "num_attention_heads"),
                "model.attn.dropout": config.take("attention_dropout", default=0.0),
                "norm.eps": config.take("layer_norm_epsilon", default=1e-5),
            }
        ),
    ]
