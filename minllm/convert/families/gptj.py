"""GPT-J: one norm for parallel attention and MLP, rotation of adjacent channels, and a bias in the head."""

from minllm.convert.settings import ConfigJson, overrides
from minllm.schema.options import Count, Fraction, Natural, Positive

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


class Config:
    """The settings that GPTJConfig reads, with its defaults."""

    aliases = {
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: Count = 50400
    bos_token_id: Natural | None = 50256
    eos_token_id: Natural | list[int] | None = 50256
    n_positions: Count = 2048
    n_embd: Count = 4096
    n_layer: Count = 28
    n_head: Count = 16
    rotary_dim: Count = 64
    n_inner: Count | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: Fraction = 0.0
    embd_pdrop: Fraction = 0.0
    attn_pdrop: Fraction = 0.0
    layer_norm_epsilon: Positive = 1e-5
    tie_word_embeddings: bool = False


def to_overrides(config: ConfigJson) -> list[str]:
    dim, heads = config.declare(Config).take("n_embd"), config.take("n_head")
    config.only("rotary", True)
    config.only("scale_attn_weights", True)
    dropout = config.take("resid_pdrop")
    config.only("embd_pdrop", dropout)  # minllm has one option for both
    return [
        "experiment=gptj",
        *overrides(
            {
                "model.dim": dim,
                "model.n_layers": config.take("n_layer"),
                "model.tie_embeddings": config.take("tie_word_embeddings"),
                "model.dropout": dropout,
                "model.attn.n_heads": heads,
                "model.attn.dropout": config.take("attn_pdrop"),
                "model.mlp.hidden": config.take("n_inner"),
                "model.mlp.activation": config.activation("activation_function"),
                "model.pos.fraction": config.take("rotary_dim") * heads / dim,
                "norm.eps": config.take("layer_norm_epsilon"),
                "data.seq_len": config.take("n_positions"),
            }
        ),
    ]
