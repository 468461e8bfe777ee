"""Gemma 3 without eyes (2503.19786): Gemma 2's names, norms of queries and keys, and a θ for each kind of layer."""

from minllm.convert.families import gemma2
from minllm.convert.settings import Settings, layout, override, rope

PREFIX = gemma2.PREFIX
TABLE = {
    **gemma2.TABLE,
    "layers.{i}.{attn}.words.{attn}.q_norm.*": "layers.{i}.self_attn.q_norm.*",
    "layers.{i}.{attn}.words.{attn}.k_norm.*": "layers.{i}.self_attn.k_norm.*",
}


def typed(config: Settings) -> list[str]:
    config.only("attn_logit_softcapping", None)
    every = config.take("sliding_window_pattern", default=6)
    return [
        "experiment=gemma3",
        *gemma2.alike(config),
        override("model.softcap", config.take("final_logit_softcapping", default=None)),
        layout(config, every=every),
        *ropes(config),
    ]


def ropes(config: Settings) -> list[str]:
    at, local_theta = "model.local.pos", config.take("rope_local_base_freq", default=10000.0)
    if "rope_parameters" in config.values:
        return [*rope(config, kind="full_attention"), *rope(config, at, kind="sliding_attention")]
    return [*rope(config, theta=1e6), f"model/pos@{at}=rope", override(f"{at}.theta", local_theta)]
