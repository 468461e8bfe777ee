"""GPT-NeoX (2204.06745) and Pythia: queries, keys and values packed for each head, two norms side by side."""

from minllm.convert.settings import Settings, attention_biases, overrides, rope
from minllm.convert.table import per_head

PREFIX = "gpt_neox."
TABLE = {
    "embedding": "embed_in.weight",
    "layers.{i}.attn+mlp.before.attn.*": "layers.{i}.input_layernorm.*",
    "layers.{i}.attn+mlp.before.mlp.*": "layers.{i}.post_attention_layernorm.*",
    "layers.{i}.attn+mlp.words.attn.qkv.*": per_head("layers.{i}.attention.query_key_value.*"),
    "layers.{i}.attn+mlp.words.attn.out.*": "layers.{i}.attention.dense.*",
    "layers.{i}.attn+mlp.words.mlp.up.*": "layers.{i}.mlp.dense_h_to_4h.*",
    "layers.{i}.attn+mlp.words.mlp.down.*": "layers.{i}.mlp.dense_4h_to_h.*",
    "norm.*": "final_layer_norm.*",
    "head.*": "lm_head.*",
}
RENAMED = {"embed_out.": "lm_head."}  # in files before version 5


def typed(config: Settings) -> list[str]:
    config.only("use_parallel_residual", True)
    # what the rope is called in files before version 5
    theta, share = config.take("rotary_emb_base", default=10000.0), config.take("rotary_pct", default=0.25)
    return [
        "experiment=gpt_neox",
        *overrides(
            {
                "model.dim": config.take("hidden_size"),
                "model.n_layers": config.take("num_hidden_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings", default=False),
                "model.dropout": config.take("hidden_dropout", default=0.0),
                "model.attn.n_heads": config.take("num_attention_heads"),
                "model.attn.dropout": config.take("attention_dropout", default=0.0),
                "model.mlp.hidden": config.take("intermediate_size"),
                "model.mlp.activation": config.activation("hidden_act"),
                "norm.eps": config.take("layer_norm_eps", default=1e-5),
                "data.seq_len": config.take("max_position_embeddings"),
            }
        ),
        *attention_biases(config, usual=True),
        *rope(config, theta=theta, share=share),
    ]
