"""Mamba-2 (2405.21060)."""

import math

from minllm.convert.families import mamba
from minllm.convert.settings import Settings, overrides
from minllm.convert.table import Row, convolution

PREFIX = mamba.PREFIX


def mixer(theirs: str) -> dict[str, str | Row]:
    """Return what the mixer's weights are called where they stand in the module `theirs`."""
    return {
        "layers.{i}.rec.words.rec.gate_x_dt.*": f"{theirs}.in_proj.*",
        "layers.{i}.rec.words.rec.conv.weight_WC": convolution(f"{theirs}.conv1d.weight"),
        "layers.{i}.rec.words.rec.conv.bias": f"{theirs}.conv1d.bias",
        "layers.{i}.rec.words.rec.dt_bias_H": f"{theirs}.dt_bias",
        "layers.{i}.rec.words.rec.log_A_H": f"{theirs}.A_log",
        "layers.{i}.rec.words.rec.skip_H": f"{theirs}.D",
        "layers.{i}.rec.words.rec.gain_F": f"{theirs}.norm.weight",
        "layers.{i}.rec.words.rec.out.*": f"{theirs}.out_proj.*",
    }


TABLE = {**mamba.AROUND, **mixer("layers.{i}.mixer")}


def typed(config: Settings) -> list[str]:
    config.take("time_step_rank", "num_heads", default=None)  # expand and head_dim say how many heads
    no_limit(config)
    return [
        "experiment=mamba2",
        *mamba.alike(config, tied=False),
        *overrides(
            {
                "model.rec.head_dim": config.take("head_dim"),
                "model.rec.n_groups": config.take("n_groups"),
                "model.rec.n_state": config.take("state_size"),
                "model.rec.chunk": config.take("chunk_size"),
                **mamba.beginnings(config),
            }
        ),
    ]


def no_limit(config: Settings) -> None:
    config.only("time_step_limit", [0.0, math.inf], (0.0, math.inf), None)
