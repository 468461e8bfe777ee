"""Mamba-2 (2405.21060)."""

import math
from typing import Any, Literal

from minllm.convert.families import mamba
from minllm.convert.settings import ConfigJson, overrides
from minllm.convert.table import Row, convolution
from minllm.errors import UserError
from minllm.schema.options import Count, Natural, NonNegative, Positive

PREFIX = mamba.PREFIX


def mixer(module: str) -> dict[str, str | Row]:
    """Return the table of the mixer's weights in the module with this name."""
    return {
        "layers.{i}.rec.words.rec.gate_x_dt.*": f"{module}.in_proj.*",
        "layers.{i}.rec.words.rec.conv.weight_WC": convolution(f"{module}.conv1d.weight"),
        "layers.{i}.rec.words.rec.conv.bias": f"{module}.conv1d.bias",
        "layers.{i}.rec.words.rec.dt_bias_H": f"{module}.dt_bias",
        "layers.{i}.rec.words.rec.log_A_H": f"{module}.A_log",
        "layers.{i}.rec.words.rec.skip_H": f"{module}.D",
        "layers.{i}.rec.words.rec.gain_F": f"{module}.norm.weight",
        "layers.{i}.rec.words.rec.out.*": f"{module}.out_proj.*",
    }


TABLE = {**mamba.OUTER_WEIGHTS, **mixer("layers.{i}.mixer")}


class Config:
    """The settings that Mamba2Config reads, with its defaults."""

    vocab_size: Count = 32768
    bos_token_id: Natural | None = 0
    eos_token_id: Natural | list[int] | None = 2
    num_heads: Count = 128
    head_dim: Count = 64
    hidden_size: Count = 4096
    state_size: Count = 128
    num_hidden_layers: Count = 64
    layer_norm_epsilon: Positive = 1e-5
    expand: Count = 2
    conv_kernel: Count = 4
    n_groups: Count = 8
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    residual_in_fp32: bool = True
    time_step_rank: Count | Literal["auto"] = "auto"
    time_step_min: Positive = 0.001
    time_step_max: Positive = 0.1
    time_step_floor: NonNegative = 1e-4
    time_step_limit: list[Any] = (0.0, math.inf)
    rescale_prenorm_residual: bool = False
    chunk_size: Count = 256
    tie_word_embeddings: bool = False


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).unused("time_step_rank")
    refuse_time_step_limit(config)
    inner, width = config.take("expand") * config.take("hidden_size"), config.take("head_dim")
    config.ignored("d_inner", inner)
    config.unused("intermediate_size")  # ignored
    if config.take("num_heads") * width != inner:
        raise UserError(
            f"{config.name} has num_heads={config.take('num_heads')} and head_dim={width}, whose product must be"
            f" expand times hidden_size, {inner}."
        )
    return [
        "experiment=mamba2",
        *mamba.shared_overrides(config, expand=config.take("expand")),
        *overrides(
            {
                "model.rec.head_dim": width,
                "model.rec.n_groups": config.take("n_groups"),
                "model.rec.n_state": config.take("state_size"),
                "model.rec.chunk": config.take("chunk_size"),
                **mamba.dt_range(config),
            }
        ),
    ]


def refuse_time_step_limit(config: ConfigJson) -> None:
    """Reject a limit on the time steps."""
    if list(config.take("time_step_limit")) != [0.0, math.inf]:
        raise UserError(
            f"{config.name} has time_step_limit={config.take('time_step_limit')}, but minllm supports only"
            " [0.0, Infinity]."
        )
