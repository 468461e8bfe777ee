"""BART (1910.13461): an encoder and a decoder with norms on the stream, and learned positions."""

from minllm.convert.settings import ConfigJson, overrides
from minllm.convert.table import Row
from minllm.schema.options import Count, Fraction, Natural


def positions(source: str) -> Row:
    """BART numbers positions from 2."""
    return Row(source, lambda parts, owner: parts[0][2:])


PREFIX = "model."
TABLE = {
    "embedding": "shared.weight",
    "embedding_norm.*": "decoder.layernorm_embedding.*",
    "position.weight": positions("decoder.embed_positions.weight"),
    "layers.{i}.attn.words.attn.qkv.*": "decoder.layers.{i}.self_attn.[q k v]_proj.*",
    "layers.{i}.attn.words.attn.out.*": "decoder.layers.{i}.self_attn.out_proj.*",
    "layers.{i}.attn.norm.*": "decoder.layers.{i}.self_attn_layer_norm.*",
    "layers.{i}.cross.words.cross.q.*": "decoder.layers.{i}.encoder_attn.q_proj.*",
    "layers.{i}.cross.words.cross.kv.*": "decoder.layers.{i}.encoder_attn.[k v]_proj.*",
    "layers.{i}.cross.words.cross.out.*": "decoder.layers.{i}.encoder_attn.out_proj.*",
    "layers.{i}.cross.norm.*": "decoder.layers.{i}.encoder_attn_layer_norm.*",
    "layers.{i}.mlp.words.mlp.up.*": "decoder.layers.{i}.fc1.*",
    "layers.{i}.mlp.words.mlp.down.*": "decoder.layers.{i}.fc2.*",
    "layers.{i}.mlp.norm.*": "decoder.layers.{i}.final_layer_norm.*",
    "head.*": "lm_head.*",
    "head_bias_V": Row("final_logits_bias", lambda parts, owner: parts[0][0]),
    "encoder.embedding_norm.*": "encoder.layernorm_embedding.*",
    "encoder.position.weight": positions("encoder.embed_positions.weight"),
    "encoder.layers.{i}.attn.words.attn.qkv.*": "encoder.layers.{i}.self_attn.[q k v]_proj.*",
    "encoder.layers.{i}.attn.words.attn.out.*": "encoder.layers.{i}.self_attn.out_proj.*",
    "encoder.layers.{i}.attn.norm.*": "encoder.layers.{i}.self_attn_layer_norm.*",
    "encoder.layers.{i}.mlp.words.mlp.up.*": "encoder.layers.{i}.fc1.*",
    "encoder.layers.{i}.mlp.words.mlp.down.*": "encoder.layers.{i}.fc2.*",
    "encoder.layers.{i}.mlp.norm.*": "encoder.layers.{i}.final_layer_norm.*",
}


class Config:
    """The settings that BartConfig reads, with its defaults."""

    aliases = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    vocab_size: Count = 50265
    bos_token_id: Natural | None = 0
    eos_token_id: Natural | list[int] | None = 2
    decoder_start_token_id: Natural | None = 2
    max_position_embeddings: Count = 1024
    encoder_layers: Count = 12
    encoder_ffn_dim: Count = 4096
    encoder_attention_heads: Count = 16
    decoder_layers: Count = 12
    decoder_ffn_dim: Count = 4096
    decoder_attention_heads: Count = 16
    encoder_layerdrop: Fraction = 0.0
    decoder_layerdrop: Fraction = 0.0
    activation_function: str = "gelu"
    d_model: Count = 1024
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.0
    activation_dropout: Fraction = 0.0
    init_std: float | None = 0.02
    scale_embedding: bool | None = False
    tie_word_embeddings: bool = True


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).unused("init_std")
    config.only("encoder_layerdrop", 0.0)
    config.only("decoder_layerdrop", 0.0)
    # settings of published files that the class doesn't read
    config.only("normalize_before", False)
    config.only("normalize_embedding", True)
    config.only("add_final_layer_norm", False)
    config.only("static_position_embeddings", False)
    config.unused(
        "add_bias_logits", "classif_dropout", "extra_pos_embeddings", "force_bos_token_to_be_generated"
    )
    length = config.take("max_position_embeddings")
    sizes = {
        "model.dim": config.take("d_model"),
        "model.n_layers": config.take("decoder_layers"),
        "model.tie_embeddings": config.take("tie_word_embeddings"),
        "model.scale_embedding": config.take("scale_embedding") or False,
        "model.dropout": config.take("dropout"),
        "model.attn.n_heads": config.take("decoder_attention_heads"),
        "model.attn.dropout": config.take("attention_dropout"),
        "model.mlp.hidden": config.take("decoder_ffn_dim"),
        "model.mlp.activation": config.activation("activation_function"),
        "model.mlp.dropout": config.take("activation_dropout"),
        "model.pos.max_len": length,
        "data.seq_len": length,
    }
    # the encoder has the decoder's sizes unless others are set
    encoder = {
        "n_layers": ("model.n_layers", config.take("encoder_layers")),
        "attn.n_heads": ("model.attn.n_heads", config.take("encoder_attention_heads")),
        "mlp.hidden": ("model.mlp.hidden", config.take("encoder_ffn_dim")),
    }
    others = {
        f"model.encoder.{key}": size
        for key, (decoder_key, size) in encoder.items()
        if size != sizes[decoder_key]
    }
    return ["experiment=bart", *overrides(sizes | others)]
