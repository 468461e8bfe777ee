"""RecurrentGemma (2404.07839): Griffin, with Gemma's norms and MLP."""

import torch

from minllm.convert.ropes import rope, rope_settings
from minllm.convert.settings import ConfigJson, WithRope, head_dim, overrides, repeated, without_unused
from minllm.convert.table import concatenated, convolution
from minllm.errors import UserError
from minllm.schema.options import Count, Fraction, Natural, NonNegative, Positive

PREFIX = "model."
TABLE = {
    "embedding": "embed_tokens.weight",
    "layers.{i}.rec.before.*": "layers.{i}.temporal_pre_norm.*",
    "layers.{i}.rec.words.rec.gate_x.*": "layers.{i}.temporal_block.linear_[y x].*",
    "layers.{i}.rec.words.rec.conv.weight_WC": convolution("layers.{i}.temporal_block.conv_1d.weight"),
    "layers.{i}.rec.words.rec.conv.bias": "layers.{i}.temporal_block.conv_1d.bias",
    "layers.{i}.rec.words.rec.gates_HKM": concatenated(
        "layers.{i}.temporal_block.rg_lru.[input recurrent]_gate_weight"
    ),
    "layers.{i}.rec.words.rec.gates_bias_HM": concatenated(
        "layers.{i}.temporal_block.rg_lru.[input recurrent]_gate_bias"
    ),
    "layers.{i}.rec.words.rec.decay_F": "layers.{i}.temporal_block.rg_lru.recurrent_param",
    "layers.{i}.rec.words.rec.out.*": "layers.{i}.temporal_block.linear_out.*",
    "layers.{i}.attn.before.*": "layers.{i}.temporal_pre_norm.*",
    "layers.{i}.attn.words.attn.qkv.*": "layers.{i}.temporal_block.[q k v]_proj.*",
    "layers.{i}.attn.words.attn.out.*": "layers.{i}.temporal_block.o_proj.*",
    "layers.{i}.mlp.before.*": "layers.{i}.channel_pre_norm.*",
    "layers.{i}.mlp.words.mlp.gate_up.*": "layers.{i}.mlp_block.[gate up]_proj.*",
    "layers.{i}.mlp.words.mlp.down.*": "layers.{i}.mlp_block.down_proj.*",
    "norm.*": "final_norm.*",
    "head.*": "lm_head.*",
}


class Config(WithRope):
    """The settings that RecurrentGemmaConfig reads, with its defaults."""

    aliases = {"sliding_window": "attention_window_size"}

    vocab_size: Count = 256000
    bos_token_id: Natural | None = 2
    eos_token_id: Natural | list[int] | None = 1
    num_hidden_layers: Count = 26
    hidden_size: Count = 2560
    intermediate_size: Count = 7680
    num_attention_heads: Count = 10
    lru_width: Count | None = None
    attention_window_size: Count = 2048
    conv1d_width: Count = 4
    logits_soft_cap: Positive = 30.0
    rms_norm_eps: Positive = 1e-6
    hidden_activation: str = "gelu_pytorch_tanh"
    block_types: list[str] = ("recurrent", "recurrent", "attention")
    attention_dropout: Fraction = 0.0
    num_key_value_heads: Count | None = None
    attention_bias: bool = False
    w_init_variance_scale: NonNegative = 0.01
    tie_word_embeddings: bool = True
    # not fields of the class, but the class reads them
    partial_rotary_factor: Fraction | None = 0.5
    head_dim: Count | None = None


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only("hidden_activation", "gelu_pytorch_tanh")  # the mixers' too
    config.unused("w_init_variance_scale", "final_w_init_variance_scale")
    dim, heads = config.take("hidden_size"), config.take("num_attention_heads")
    width = config.take("lru_width")
    rec = {
        "model.rec.width": None if width == dim else width,
        "model.rec.n_blocks": heads,
        "model.rec.conv_width": config.take("conv1d_width"),
    }
    layers = layout(config)
    return [
        "experiment=recurrent_gemma",
        *overrides(
            {
                "model.dim": dim,
                "model.n_layers": config.take("num_hidden_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings"),
                "model.scale_embedding": torch.tensor(dim**0.5).bfloat16().item(),
                "model.softcap": config.take("logits_soft_cap"),
                "model.attn.n_heads": heads,
                "model.attn.n_kv_heads": config.take("num_key_value_heads") or heads,
                "model.attn.head_dim": head_dim(config),
                "model.attn.qkv_bias": config.take("attention_bias"),
                "model.attn.mask.window": config.take("attention_window_size"),
                "model.attn.dropout": config.take("attention_dropout"),
                "model.mlp.hidden": config.take("intermediate_size") // 2,  # of gate and up together
                "norm.eps": config.take("rms_norm_eps"),
            }
        ),
        *layers,
        *(overrides(rec) if "~model.rec" not in layers else []),
        *rope(config, rope_settings(config), partial=True),
    ]


def layout(config: ConfigJson) -> list[str]:
    """Return the overrides for the layers, whose kinds repeat as in `block_types`."""
    branches = {"recurrent": "rec mlp", "attention": "attn mlp"}
    kinds, n_layers = list(config.take("block_types")), config.take("num_hidden_layers")
    config.unused("layer_types", "layers_block_type")  # follow from them
    if not kinds or set(kinds) - set(branches):
        raise UserError(
            f"{config.name} has block_types={kinds}, but minllm supports only {', '.join(branches)}."
        )
    branch_names = [branches[kinds[i % len(kinds)]] for i in range(n_layers)]
    return [repeated(branch_names), *without_unused(branch_names, ["rec"])]
