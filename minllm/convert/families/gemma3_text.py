"""Gemma 3 without eyes (2503.19786): Gemma 2's names, norms of queries and keys, and a θ for each kind of layer."""

from minllm.convert.families import gemma2
from minllm.convert.settings import Settings, overrides, rope

PREFIX = gemma2.PREFIX
TABLE = {
    **gemma2.TABLE,
    "layers.{i}.{attn}.words.{attn}.q_norm.*": "layers.{i}.self_attn.q_norm.*",
    "layers.{i}.{attn}.words.{attn}.k_norm.*": "layers.{i}.self_attn.k_norm.*",
}


def typed(config: Settings) -> list[str]:
    config.only("attn_logit_softcapping", None)
    every = config.take("sliding_window_pattern", default=6)
    if "layer_types" not in config.values:  # files before version 5 have the pattern only
        layers = range(1, config.take("num_hidden_layers") + 1)
        config.values["layer_types"] = [
            "sliding_attention" if i % every else "full_attention" for i in layers
        ]
    return ["experiment=gemma3", *gemma2.alike(config), *ropes(config)]


def ropes(config: Settings) -> list[str]:
    if "rope_parameters" in config.values:
        return [
            *rope(config, kind="full_attention"),
            *rope(config, "model.local.pos", kind="sliding_attention"),
        ]
    local_theta = config.take("rope_local_base_freq", default=10000.0)
    config.values.setdefault("rope_theta", 1e6)
    return [
        *rope(config),
        "model/pos@model.local.pos=rope",
        *overrides({"model.local.pos.theta": local_theta}),
    ]
