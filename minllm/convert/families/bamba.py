"""Bamba: Mamba-2 and an MLP in each layer, attention instead of Mamba-2 in a few."""

import math
from typing import Any, Literal

from minllm.convert.families import jamba, mamba2
from minllm.convert.ropes import either_form, rope
from minllm.convert.settings import (
    ConfigJson,
    WithRope,
    attention_biases,
    head_dim,
    llama_like,
    override,
    overrides,
    repeated,
    without_unused,
)
from minllm.errors import UserError
from minllm.schema.checking import fits
from minllm.schema.options import Count, Fraction, Natural, NonNegative, Positive

PREFIX = jamba.PREFIX
TABLE = jamba.layers(mamba2.mixer("layers.{i}.mamba"))


class Config(WithRope):
    """The settings that BambaConfig reads, with its defaults."""

    vocab_size: Count = 128000
    bos_token_id: Natural | None = 1
    eos_token_id: Natural | list[int] | None = 2
    tie_word_embeddings: bool = False
    hidden_size: Count = 4096
    intermediate_size: Count = 14336
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = 8
    hidden_act: str = "silu"
    rms_norm_eps: Positive = 1e-5
    max_position_embeddings: Count = 262144
    attention_dropout: Fraction | None = 0.0
    attn_layer_indices: list[int] | None = None
    mamba_n_heads: Count = 128
    mamba_d_head: Count | Literal["auto"] = "auto"
    mamba_n_groups: Count = 1
    mamba_d_state: Count = 256
    mamba_d_conv: Count = 4
    mamba_expand: Count = 2
    mamba_chunk_size: Count = 256
    mamba_conv_bias: bool | None = True
    mamba_proj_bias: bool | None = False
    time_step_limit: list[Any] = (0.0, math.inf)
    z_loss_coefficient: NonNegative | None = 0.0
    num_logits_to_keep: Natural | None = 1
    attention_bias: bool = False
    mlp_bias: bool = False
    # not a field of the class, but its layers read it
    head_dim: Count | None = None


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only_silu()  # the mixers' too
    config.unused("z_loss_coefficient", "num_logits_to_keep", "use_mamba_kernels")
    config.unused("layer_types", "layers_block_type")  # follow from attn_layer_indices
    mamba2.refuse_time_step_limit(config)
    rec = {
        "model.rec.head_dim": mixer_width(config),
        "model.rec.n_groups": config.take("mamba_n_groups"),
        "model.rec.chunk": config.take("mamba_chunk_size"),
        **jamba.mixer_overrides(config),
    }
    layers = layout(config)
    return [
        "experiment=bamba",
        *llama_like(config),
        *layers,
        *attention_biases(config),
        override("model.mlp.bias", config.take("mlp_bias")),
        *(overrides(rec) if "~model.rec" not in layers else []),
        *rope(config, rope_settings(config), partial=True),
    ]


def mixer_width(config: ConfigJson) -> int:
    """Return the width of each of the mixer's heads."""
    inner, heads = config.take("mamba_expand") * config.take("hidden_size"), config.take("mamba_n_heads")
    head_width = config.take("mamba_d_head")
    width = inner // heads if head_width == "auto" else head_width
    if width * heads != inner:
        raise UserError(
            f"{config.name} has mamba_n_heads={heads} and mamba_d_head={head_width}, whose product must be mamba_expand"
            f" times hidden_size, {inner}."
        )
    return width


def rope_settings(config: ConfigJson) -> dict[str, Any]:
    """Return the RoPE settings. Half of each head is rotated by default; duplicates outside of them are ignored."""
    settings = either_form(config)
    share = settings.setdefault("partial_rotary_factor", 0.5)
    config.ignored("partial_rotary_factor", share)
    if fits(share, Fraction):
        config.ignored("attn_rotary_emb", int(head_dim(config) * share))
    settings.setdefault("rope_theta", config.take("rope_theta"))
    config.ignored("rope_theta", settings["rope_theta"])
    return settings


def layout(config: ConfigJson) -> list[str]:
    """Return the overrides for the first layer and for the others, which repeat in the published models."""
    attends = set(config.take("attn_layer_indices") or ())
    first, *others = [
        "attn mlp" if i in attends else "rec mlp" for i in range(config.take("num_hidden_layers"))
    ]
    # a single layer is the repeated one
    return [
        override("model.first", [first] if others else []),
        repeated(others or [first]),
        *without_unused([first, *others], ["rec"]),
    ]
