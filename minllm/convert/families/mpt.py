"""MPT: ALiBi, and no biases."""

from minllm.convert.settings import Settings, overrides

PREFIX = "transformer."
TABLE = {
    "embedding": "wte.weight",
    "layers.{i}.attn.before.*": "blocks.{i}.norm_1.*",
    "layers.{i}.attn.words.attn.qkv.*": "blocks.{i}.attn.Wqkv.*",
    "layers.{i}.attn.words.attn.out.*": "blocks.{i}.attn.out_proj.*",
    "layers.{i}.mlp.before.*": "blocks.{i}.norm_2.*",
    "layers.{i}.mlp.words.mlp.up.*": "blocks.{i}.ffn.up_proj.*",
    "layers.{i}.mlp.words.mlp.down.*": "blocks.{i}.ffn.down_proj.*",
    "norm.*": "norm_f.*",
    "head.*": "lm_head.*",
}


def typed(config: Settings) -> list[str]:
    config.only("expansion_ratio", 4)
    config.only("no_bias", True)
    config.only("logit_scale", None)
    config.only("norm_type", "low_precision_layernorm", "layernorm")
    for unused in ("learned_pos_emb", "emb_pdrop", "resid_pdrop"):  # by transformers neither
        config.take(unused, default=None)
    attention = config.inner("attn_config") or Settings({})
    attention.only("attn_type", "multihead_attention")
    attention.only("alibi", True)
    attention.only("alibi_bias_max", 8)
    attention.only("clip_qkv", None)
    attention.only("qk_ln", False)
    attention.only("prefix_lm", False)
    dropout = attention.take("attn_pdrop", default=0.0)  # everywhere
    scale = attention.take("softmax_scale", default=None)
    attention.finish()
    return [
        "experiment=mpt",
        *overrides(
            {
                "model.dim": config.take("d_model"),
                "model.n_layers": config.take("n_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings", default=True),
                "model.dropout": dropout,
                "model.attn.n_heads": config.take("n_heads"),
                "model.attn.scale": scale,
                "model.attn.dropout": dropout,
                "norm.eps": config.take("layer_norm_epsilon", default=1e-5),
                "data.seq_len": config.take("max_seq_len"),
            }
        ),
    ]
