"""Gemma 3, text only (2503.19786): Gemma 2's names, norms of queries and keys, and a θ for each kind of layer."""

from minllm.convert.families import gemma2
from minllm.convert.ropes import rope
from minllm.convert.settings import ConfigJson, layer_types
from minllm.errors import UserError
from minllm.schema.options import Count, Positive

PREFIX = gemma2.PREFIX
TABLE = {
    **gemma2.TABLE,
    "layers.{i}.{attn}.words.{attn}.q_norm.*": "layers.{i}.self_attn.q_norm.*",
    "layers.{i}.{attn}.words.{attn}.k_norm.*": "layers.{i}.self_attn.k_norm.*",
}


class Config(gemma2.Config):
    """The settings that Gemma3TextConfig reads, with its defaults."""

    vocab_size: Count = 262208
    max_position_embeddings: Count = 131072
    final_logit_softcapping: Positive | None = None
    attn_logit_softcapping: Positive | None = None
    use_bidirectional_attention: bool | None = False
    # before version 5
    sliding_window_pattern: Count = 6
    rope_theta: Positive = 1e6
    rope_local_base_freq: Positive = 10000.0


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only("attn_logit_softcapping", None)
    kinds = layer_types(config, every=config.take("sliding_window_pattern"))
    return ["experiment=gemma3", *gemma2.shared_overrides(config, kinds), *ropes(config, kinds)]


def ropes(config: ConfigJson, kinds: list[str]) -> list[str]:
    """Return the overrides for the RoPE of each kind of layer that the model has."""
    by_kind = dict(config.take("rope_parameters") or {})
    for kind, key in (("full_attention", "rope_theta"), ("sliding_attention", "rope_local_base_freq")):
        of_kind = by_kind.get(kind) or {"rope_type": "default"}
        if not isinstance(of_kind, dict):
            raise UserError(
                f"{config.name}'s rope_parameters have {kind}={of_kind}, which must be a section."
            )
        of_kind = {**of_kind, **((config.take("rope_scaling") or {}) if kind == "full_attention" else {})}
        of_kind.setdefault("rope_theta", config.take(key))
        config.ignored(key, of_kind["rope_theta"])
        by_kind[kind] = of_kind
    if unknown := sorted(set(by_kind) - {"full_attention", "sliding_attention"}):
        raise UserError(
            f"{config.name}'s rope_parameters have {', '.join(unknown)}, which transformers ignores: they must be"
            " sections named full_attention and sliding_attention."
        )
    result = []
    for kind, at in (("full_attention", "model.pos"), ("sliding_attention", "model.local.pos")):
        if kind in kinds:
            if not by_kind[kind].get("truncate", True):
                raise UserError(
                    f"{config.name}'s rope for {kind} has truncate={by_kind[kind]['truncate']}, which transformers"
                    " ignores there: remove it."
                )
            result += rope(config, by_kind[kind], at)
    return result
