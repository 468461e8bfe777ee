"""GPT-J: one norm for attention and MLP side by side, rotation of neighbouring channels, a bias at the head."""

from minllm.convert.settings import Settings, overrides

PREFIX = "transformer."
TABLE = {
    "embedding": "wte.weight",
    "layers.{i}.attn+mlp.before.*": "h.{i}.ln_1.*",
    "layers.{i}.attn+mlp.words.attn.qkv.*": "h.{i}.attn.[q k v]_proj.*",
    "layers.{i}.attn+mlp.words.attn.out.*": "h.{i}.attn.out_proj.*",
    "layers.{i}.attn+mlp.words.mlp.up.*": "h.{i}.mlp.fc_in.*",
    "layers.{i}.attn+mlp.words.mlp.down.*": "h.{i}.mlp.fc_out.*",
    "norm.*": "ln_f.*",
    "head.*": "lm_head.*",
    "head_bias_V": "lm_head.bias",
}


def typed(config: Settings) -> list[str]:
    dim, heads = config.take("n_embd"), config.take("n_head")
    config.only("rotary", True)
    config.only("scale_attn_weights", True)
    dropout = config.take("resid_pdrop", default=0.0)
    config.only("embd_pdrop", dropout)  # one number is for both
    return [
        "experiment=gptj",
        *overrides(
            {
                "model.dim": dim,
                "model.n_layers": config.take("n_layer"),
                "model.tie_embeddings": config.take("tie_word_embeddings", default=False),
                "model.dropout": dropout,
                "model.attn.n_heads": heads,
                "model.attn.dropout": config.take("attn_pdrop", default=0.0),
                "model.mlp.hidden": config.take("n_inner", default=None),
                "model.mlp.activation": config.activation("activation_function"),
                "model.pos.fraction": config.take("rotary_dim") / (dim // heads),
                "norm.eps": config.take("layer_norm_epsilon", default=1e-5),
                "data.seq_len": config.take("n_positions"),
            }
        ),
    ]
