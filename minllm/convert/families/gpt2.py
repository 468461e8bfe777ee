"""GPT-2: its matrices are transposed, because it computes x W and not x Wᵀ."""

from minllm.convert.settings import ConfigJson, overrides
from minllm.convert.table import transposed
from minllm.schema.options import Count, Fraction, Natural, Positive

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


class Config:
    """The settings that GPT2Config reads, with its defaults."""

    aliases = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: Count = 50257
    bos_token_id: Natural | None = 50256
    eos_token_id: Natural | list[int] | None = 50256
    n_positions: Count = 1024
    n_embd: Count = 768
    n_layer: Count = 12
    n_head: Count = 12
    n_inner: Count | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: Fraction = 0.1
    embd_pdrop: Fraction = 0.1
    attn_pdrop: Fraction = 0.1
    layer_norm_epsilon: Positive = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("add_cross_attention", False)
    dropout = config.take("resid_pdrop")
    config.only("embd_pdrop", dropout)  # minllm has one option for both
    length = config.take("n_positions")
    return [
        "experiment=gpt2",
        *overrides(
            {
                "model.dim": config.take("n_embd"),
                "model.n_layers": config.take("n_layer"),
                "model.tie_embeddings": config.take("tie_word_embeddings"),
                "model.dropout": dropout,
                "model.attn.n_heads": config.take("n_head"),
                "model.attn.dropout": config.take("attn_pdrop"),
                "model.mlp.hidden": config.take("n_inner"),
                "model.mlp.activation": config.activation("activation_function"),
                "model.pos.max_len": length,
                "norm.eps": config.take("layer_norm_epsilon"),
                "data.seq_len": length,
            }
        ),
    ]
