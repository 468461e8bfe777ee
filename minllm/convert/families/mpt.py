"""MPT: ALiBi, and no biases."""

from typing import Annotated

from minllm.convert.settings import ConfigJson, overrides
from minllm.schema.options import Count, Fraction, Natural, NonNegative, Positive, Range

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


class Attention:
    """The settings that MptAttentionConfig reads, with its defaults."""

    attn_type: str = "multihead_attention"
    attn_pdrop: Fraction = 0
    clip_qkv: NonNegative | None = None
    softmax_scale: Positive | None = None
    prefix_lm: bool = False
    qk_ln: bool = False
    alibi: bool = True
    alibi_bias_max: Count = 8


class Config:
    """The settings that MptConfig reads, with its defaults."""

    aliases = {"num_attention_heads": "n_heads", "hidden_size": "d_model", "num_hidden_layers": "n_layers"}

    vocab_size: Count = 50368
    bos_token_id: Natural | None = None
    eos_token_id: Natural | list[int] | None = None
    d_model: Count = 2048
    n_heads: Count = 16
    n_layers: Count = 24
    expansion_ratio: Count = 4
    max_seq_len: Annotated[int, Range("a whole number of 2 or more", 2)] = (
        2048  # a single position has no ALiBi
    )
    resid_pdrop: Fraction = 0.0
    layer_norm_epsilon: Positive = 1e-5
    emb_pdrop: Fraction = 0.0
    learned_pos_emb: bool = True
    attn_config: dict | None = None
    logit_scale: float | str | None = None
    no_bias: bool = True
    norm_type: str = "low_precision_layernorm"
    tie_word_embeddings: bool = True


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only("expansion_ratio", 4)
    config.only("no_bias", True)
    config.only("logit_scale", None)
    config.only("norm_type", "low_precision_layernorm", "layernorm")
    config.unused("learned_pos_emb", "emb_pdrop", "resid_pdrop")  # transformers doesn't use them either
    attention = config.inner("attn_config", Attention)
    attention.only("attn_type", "multihead_attention")
    attention.only("alibi", True)
    attention.only("alibi_bias_max", 8)
    attention.only("clip_qkv", None, 0)
    attention.only("qk_ln", False)
    attention.only("prefix_lm", False)
    dropout = attention.take("attn_pdrop")  # everywhere
    scale = attention.take("softmax_scale")
    attention.finish()
    return [
        "experiment=mpt",
        *overrides(
            {
                "model.dim": config.take("d_model"),
                "model.n_layers": config.take("n_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings"),
                "model.dropout": dropout,
                "model.attn.n_heads": config.take("n_heads"),
                "model.attn.scale": scale,
                "model.attn.dropout": dropout,
                "norm.eps": config.take("layer_norm_epsilon"),
                "data.seq_len": config.take("max_seq_len"),
            }
        ),
    ]
