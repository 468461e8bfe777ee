"""Mamba (2312.00752)."""

import math
from typing import Literal

from minllm.convert.settings import ConfigJson, override, overrides
from minllm.convert.table import Row, convolution
from minllm.errors import UserError
from minllm.schema.options import Count, Natural, NonNegative, Positive

PREFIX = "backbone."
OUTER_WEIGHTS = {
    "embedding": "embeddings.weight",
    "layers.{i}.rec.before.*": "layers.{i}.norm.*",
    "norm.*": "norm_f.*",
    "head.*": "lm_head.*",
}
"""The names of the weights outside the mixers, in Mamba and Mamba-2."""


def mixer(module: str) -> dict[str, str | Row]:
    """Return the table of the mixer's weights in the module with this name."""
    return {
        "layers.{i}.rec.words.rec.x_gate.*": f"{module}.in_proj.*",
        "layers.{i}.rec.words.rec.conv.weight_WC": convolution(f"{module}.conv1d.weight"),
        "layers.{i}.rec.words.rec.conv.bias": f"{module}.conv1d.bias",
        "layers.{i}.rec.words.rec.dt_B_C.*": f"{module}.x_proj.*",
        "layers.{i}.rec.words.rec.dt.weight": f"{module}.dt_proj.weight",
        "layers.{i}.rec.words.rec.dt_bias_F": f"{module}.dt_proj.bias",
        "layers.{i}.rec.words.rec.log_A_FN": f"{module}.A_log",
        "layers.{i}.rec.words.rec.skip_F": f"{module}.D",
        "layers.{i}.rec.words.rec.out.*": f"{module}.out_proj.*",
    }


TABLE = {**OUTER_WEIGHTS, **mixer("layers.{i}.mixer")}


class Config:
    """The settings that MambaConfig reads, with its defaults."""

    vocab_size: Count = 50280
    bos_token_id: Natural | None = 0
    eos_token_id: Natural | list[int] | None = 0
    hidden_size: Count = 768
    state_size: Count = 16
    num_hidden_layers: Count = 32
    layer_norm_epsilon: Positive = 1e-5
    expand: Count = 2
    conv_kernel: Count = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    residual_in_fp32: bool = True
    time_step_rank: Count | Literal["auto"] = "auto"
    time_step_scale: Positive = 1.0
    time_step_min: Positive = 0.001
    time_step_max: Positive = 0.1
    time_step_init_scheme: str = "random"
    time_step_floor: NonNegative = 1e-4
    rescale_prenorm_residual: bool = False
    use_mambapy: bool = False
    use_associative_scan: bool = True
    tie_word_embeddings: bool = True
    # not a field of the class, but its layers read it
    intermediate_size: Count | None = None


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config)
    dim = config.take("hidden_size")
    inner = config.take("intermediate_size") or config.take("expand") * dim
    config.ignored("d_inner", inner)
    if inner % dim:
        raise UserError(
            f"{config.name} has intermediate_size={inner}, but minllm supports only multiples of hidden_size={dim}."
        )
    return [
        "experiment=mamba",
        *shared_overrides(config, expand=inner // dim),
        *overrides(
            {
                "model.rec.n_state": config.take("state_size"),
                "model.rec.dt_rank": rank(config, "time_step_rank"),
                **dt_range(config),
            }
        ),
    ]


def shared_overrides(config: ConfigJson, *, expand: int) -> list[str]:
    """Return the overrides for the settings that Mamba and Mamba-2 share."""
    config.unused("expand")
    config.only_silu()
    config.only("rms_norm", True)
    config.ignored("d_model", config.take("hidden_size"))
    config.ignored("n_layer", config.take("num_hidden_layers"))
    config.unused(
        "use_mambapy", "use_associative_scan", "residual_in_fp32", "fused_add_norm"
    )  # how it is computed
    config.unused("rescale_prenorm_residual", "time_step_init_scheme", "time_step_floor", "time_step_scale")
    config.unused("ssm_cfg", "pad_vocab_size_multiple", "norm_before_gate")  # of older files, ignored
    return [
        *overrides(
            {
                "model.dim": config.take("hidden_size"),
                "model.n_layers": config.take("num_hidden_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings"),
                "model.rec.expand": expand,
                "model.rec.conv_width": config.take("conv_kernel"),
                "model.rec.conv_bias": config.take("use_conv_bias"),
                "model.rec.bias": config.take("use_bias"),
                "norm.eps": config.take("layer_norm_epsilon"),
            }
        ),
        override("data.seq_len", 2048),  # the files don't record the training length
    ]


def rank(config: ConfigJson, key: str) -> int | None:
    """Return the rank of the time step's projection; None is the default."""
    value, default = config.take(key), math.ceil(config.take("hidden_size") / 16)
    return None if value in ("auto", default) else value


def dt_range(config: ConfigJson) -> dict[str, float]:
    """Return the options for the range of the initial time steps."""
    low, high = sorted([config.take("time_step_min"), config.take("time_step_max")])
    return {"model.rec.dt_min": low, "model.rec.dt_max": high}
