"""T5 (1910.10683), and T5 1.1, whose MLPs are gated.

T5 divides the head's input by √dim. Here tokens are multiplied by √dim when they are embedded, which is the same if the
embedding is √dim times smaller.
"""

from minllm.convert.settings import ACTIVATIONS, ConfigJson, overrides
from minllm.convert.table import Row
from minllm.errors import UserError
from minllm.schema.options import Count, Fraction, Natural, Positive

PREFIX = ""
ATTENTION = "layer.0.SelfAttention"
CROSS = "layer.1.EncDecAttention"
TABLE = {
    "embedding": Row("shared.weight", lambda parts, owner: parts[0] / owner.embedding_scale),
    "position.weight_UH": f"decoder.block.0.{ATTENTION}.relative_attention_bias.weight",
    "layers.{i}.attn.before.*": "decoder.block.{i}.layer.0.layer_norm.*",
    "layers.{i}.attn.words.attn.qkv.*": f"decoder.block.{{i}}.{ATTENTION}.[q k v].*",
    "layers.{i}.attn.words.attn.out.*": f"decoder.block.{{i}}.{ATTENTION}.o.*",
    "layers.{i}.cross.before.*": "decoder.block.{i}.layer.1.layer_norm.*",
    "layers.{i}.cross.words.cross.q.*": f"decoder.block.{{i}}.{CROSS}.q.*",
    "layers.{i}.cross.words.cross.kv.*": f"decoder.block.{{i}}.{CROSS}.[k v].*",
    "layers.{i}.cross.words.cross.out.*": f"decoder.block.{{i}}.{CROSS}.o.*",
    "layers.{i}.mlp.before.*": "decoder.block.{i}.layer.2.layer_norm.*",
    "layers.{i}.mlp.words.mlp.up.*": "decoder.block.{i}.layer.2.DenseReluDense.wi.*",
    "layers.{i}.mlp.words.mlp.gate_up.*": "decoder.block.{i}.layer.2.DenseReluDense.[wi_0 wi_1].*",
    "layers.{i}.mlp.words.mlp.down.*": "decoder.block.{i}.layer.2.DenseReluDense.wo.*",
    "norm.*": "decoder.final_layer_norm.*",
    "head.*": "lm_head.*",
    "encoder.position.weight_UH": f"encoder.block.0.{ATTENTION}.relative_attention_bias.weight",
    "encoder.layers.{i}.attn.before.*": "encoder.block.{i}.layer.0.layer_norm.*",
    "encoder.layers.{i}.attn.words.attn.qkv.*": f"encoder.block.{{i}}.{ATTENTION}.[q k v].*",
    "encoder.layers.{i}.attn.words.attn.out.*": f"encoder.block.{{i}}.{ATTENTION}.o.*",
    "encoder.layers.{i}.mlp.before.*": "encoder.block.{i}.layer.1.layer_norm.*",
    "encoder.layers.{i}.mlp.words.mlp.up.*": "encoder.block.{i}.layer.1.DenseReluDense.wi.*",
    "encoder.layers.{i}.mlp.words.mlp.gate_up.*": "encoder.block.{i}.layer.1.DenseReluDense.[wi_0 wi_1].*",
    "encoder.layers.{i}.mlp.words.mlp.down.*": "encoder.block.{i}.layer.1.DenseReluDense.wo.*",
    "encoder.norm.*": "encoder.final_layer_norm.*",
}


class Config:
    """The settings that T5Config reads, with its defaults."""

    aliases = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    vocab_size: Count = 32128
    bos_token_id: Natural | None = None
    eos_token_id: Natural | list[int] | None = 1
    decoder_start_token_id: Natural | None = None
    d_model: Count = 512
    d_kv: Count = 64
    d_ff: Count = 2048
    num_layers: Count = 6
    num_decoder_layers: Count | None = None
    num_heads: Count = 8
    relative_attention_num_buckets: Count = 32
    relative_attention_max_distance: Count = 128
    dropout_rate: Fraction = 0.1
    layer_norm_epsilon: Positive = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    # not a field of the class, but saved by it; the default is tie_word_embeddings
    scale_decoder_outputs: bool
    # likewise, from feed_forward_proj
    dense_act_fn: str
    is_gated_act: bool
    # not a field of the class: the training length
    n_positions: Count = 512


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).unused("initializer_factor", "output_past")
    tied = config.take("tie_word_embeddings")
    scaled = config.take("scale_decoder_outputs", default=tied)
    if scaled and not tied:
        raise UserError(
            f"{config.name} has scale_decoder_outputs=true, but tie_word_embeddings=false, which minllm doesn't"
            " support."
        )
    encoder_layers, dropout = config.take("num_layers"), config.take("dropout_rate")
    decoder_layers = config.take("num_decoder_layers") or encoder_layers
    depths = {"model.n_layers": decoder_layers}
    if encoder_layers != decoder_layers:
        depths["model.encoder.n_layers"] = encoder_layers
    return [
        "experiment=t5",
        *mlp(config),
        *overrides(
            {
                "model.dim": config.take("d_model"),
                **depths,
                "model.tie_embeddings": tied,
                "model.scale_embedding": scaled,
                "model.dropout": dropout,
                "model.attn.n_heads": config.take("num_heads"),
                "model.attn.head_dim": config.take("d_kv"),
                "model.attn.dropout": dropout,
                "model.mlp.hidden": config.take("d_ff"),
                "model.mlp.dropout": dropout,
                "model.pos.n_buckets": config.take("relative_attention_num_buckets"),
                "model.pos.max_distance": config.take("relative_attention_max_distance"),
                "norm.eps": config.take("layer_norm_epsilon"),
                "data.seq_len": config.take("n_positions"),
            }
        ),
    ]


def mlp(config: ConfigJson) -> list[str]:
    """Return the overrides for feed_forward_proj: relu in the original, gated-gelu in T5 1.1."""
    name = config.take("feed_forward_proj")
    # by this name, the class uses the approximate GELU
    activation = "gelu_new" if name == "gated-gelu" else name.removeprefix("gated-")
    activation = config.take("dense_act_fn", default=activation)
    gated = config.take("is_gated_act", default=name.startswith("gated-"))
    if activation not in ACTIVATIONS:
        raise UserError(
            f"{config.name} has feed_forward_proj={name}, but minllm supports only {', '.join(ACTIVATIONS)}, and the"
            " same with the prefix gated-."
        )
    if activation == "relu" and not gated:
        return []
    return [
        f"model/mlp={'swiglu' if gated else 'gelu'}",
        *overrides({"model.mlp.activation": ACTIVATIONS[activation]}),
    ]
