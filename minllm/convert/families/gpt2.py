"""GPT-2: its matrices are transposed, since its products are x W and not x Wᵀ."""

from minllm.convert.settings import Settings, overrides
from minllm.convert.table import transposed

PREFIX = "transformer."
TABLE = {
    "embedding": "wte.weight",
    "position.weight": "wpe.weight",
    "layers.{i}.attn.before.*": "h.{i}.ln_1.*",
    "layers.{i}.attn.words.attn.qkv.*": transposed("h.{i}.attn.c_attn.*"),
    "layers.{i}.attn.words.attn.out.*": transposed("h.{i}.attn.c_proj.*"),
    "layers.{i}.mlp.before.*": "h.{i}.ln_2.*",
    "layers.{i}.mlp.words.mlp.up.*": transposed("h.{i}.mlp.c_fc.*"),
    "layers.{i}.mlp.words.mlp.down.*": transposed("h.{i}.mlp.c_proj.*"),
    "norm.*": "ln_f.*",
    "head.*": "lm_head.*",
}


def typed(config: Settings) -> list[str]:
    config.only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("add_cross_attention", False)
    dropout = config.take("resid_pdrop", default=0.1)
    config.only("embd_pdrop", dropout)  # one number is for both
    places = config.take("n_positions")
    return [
        "experiment=gpt2",
        *overrides(
            {
                "model.dim": config.take("n_embd"),
                "model.n_layers": config.take("n_layer"),
                "model.tie_embeddings": config.take("tie_word_embeddings", default=True),
                "model.dropout": dropout,
                "model.attn.n_heads": config.take("n_head"),
                "model.attn.dropout": config.take("attn_pdrop", default=0.1),
                "model.mlp.hidden": config.take("n_inner", default=None),
                "model.mlp.activation": config.activation("activation_function"),
                "model.pos.max_len": places,
                "norm.eps": config.take("layer_norm_epsilon", default=1e-5),
                "data.seq_len": places,
            }
        ),
    ]
