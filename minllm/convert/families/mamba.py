"""Mamba (2312.00752)."""

import math

from minllm.convert.settings import Settings, override, overrides
from minllm.convert.table import Row, convolution

PREFIX = "backbone."
AROUND = {
    "embedding": "embeddings.weight",
    "layers.{i}.rec.before.*": "layers.{i}.norm.*",
    "norm.*": "norm_f.*",
    "head.*": "lm_head.*",
}
"""What Mamba and Mamba-2 call the weights around their mixers."""


def mixer(theirs: str) -> dict[str, str | Row]:
    """Return what the mixer's weights are called where they stand in the module `theirs`."""
    return {
        "layers.{i}.rec.words.rec.x_gate.*": f"{theirs}.in_proj.*",
        "layers.{i}.rec.words.rec.conv.weight_WC": convolution(f"{theirs}.conv1d.weight"),
        "layers.{i}.rec.words.rec.conv.bias": f"{theirs}.conv1d.bias",
        "layers.{i}.rec.words.rec.dt_B_C.*": f"{theirs}.x_proj.*",
        "layers.{i}.rec.words.rec.dt.weight": f"{theirs}.dt_proj.weight",
        "layers.{i}.rec.words.rec.dt_bias_F": f"{theirs}.dt_proj.bias",
        "layers.{i}.rec.words.rec.log_A_FN": f"{theirs}.A_log",
        "layers.{i}.rec.words.rec.skip_F": f"{theirs}.D",
        "layers.{i}.rec.words.rec.out.*": f"{theirs}.out_proj.*",
    }


TABLE = {**AROUND, **mixer("layers.{i}.mixer")}


def typed(config: Settings) -> list[str]:
    config.take("intermediate_size", default=None)  # expand says it
    return [
        "experiment=mamba",
        *alike(config, tied=True),
        *overrides(
            {
                "model.rec.n_state": config.take("state_size"),
                "model.rec.dt_rank": rank(config, "time_step_rank"),
                **beginnings(config),
            }
        ),
    ]


def alike(config: Settings, *, tied: bool) -> list[str]:
    """Return what Mamba and Mamba-2 say in the same words.

    Args:
        tied: what silence about the head means.
    """
    config.only("hidden_act", "silu")
    config.only("rms_norm", True)
    config.only("norm_before_gate", False)
    how_computed = "use_mambapy", "use_associative_scan", "residual_in_fp32", "fused_add_norm"
    first_values = "rescale_prenorm_residual", "time_step_init_scheme", "time_step_floor", "time_step_scale"
    older = "d_model", "d_inner", "n_layer", "ssm_cfg", "pad_vocab_size_multiple"
    config.take(*how_computed, *first_values, *older, default=None)
    return [
        *overrides(
            {
                "model.dim": config.take("hidden_size"),
                "model.n_layers": config.take("num_hidden_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings", default=tied),
                "model.rec.expand": config.take("expand"),
                "model.rec.conv_width": config.take("conv_kernel"),
                "model.rec.conv_bias": config.take("use_conv_bias"),
                "model.rec.bias": config.take("use_bias"),
                "norm.eps": config.take("layer_norm_epsilon"),
            }
        ),
        override("data.seq_len", 2048),  # nothing says how far they were trained
    ]


def rank(config: Settings, key: str) -> int | None:
    """Return the width of the steps' bottleneck; None is the usual one."""
    said, usual = config.take(key), math.ceil(config.take("hidden_size") / 16)
    return None if said in ("auto", usual) else said


def beginnings(config: Settings) -> dict[str, float]:
    """Return between what the steps begin."""
    return {
        "model.rec.dt_min": config.take("time_step_min"),
        "model.rec.dt_max": config.take("time_step_max"),
    }
