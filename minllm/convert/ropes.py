"""Reads the RoPE settings of a config.json, in the form of transformers 5 and in the older one.

    rope_parameters: {rope_type: linear, factor: 4.0, rope_theta: 500.0}      # version 5
    rope_scaling: {type: linear, factor: 4.0}, rope_theta: 500.0              # older

Each type of RoPE has a table of its keys, as each family has a table of its settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minllm.convert.settings import ConfigJson, head_dim, overrides
from minllm.errors import UserError
from minllm.schema.options import Count, Fraction, NonNegative, Positive


class Default:
    """The keys of every RoPE. `type` is the old name of `rope_type`."""

    rope_type: str = "default"
    type: str = "default"
    rope_theta: Positive
    partial_rotary_factor: Fraction | None = None


class Linear(Default):
    factor: Positive


class Llama3(Default):
    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Count


class Yarn(Default):
    factor: Positive | None
    original_max_position_embeddings: Count
    beta_fast: NonNegative | None = None
    beta_slow: NonNegative | None = None
    truncate: bool | None = True
    attention_factor: Positive | None = None
    mscale: NonNegative | None = None
    mscale_all_dim: NonNegative | None = None


def unscaled(given: ConfigJson) -> dict[str, Any]:
    return {}


def linear(given: ConfigJson) -> dict[str, Any]:
    return {"factor": given.take("factor")}


def llama3(given: ConfigJson) -> dict[str, Any]:
    return {
        "factor": given.take("factor"),
        "original_len": given.take("original_max_position_embeddings"),
        "low": given.take("low_freq_factor"),
        "high": given.take("high_freq_factor"),
    }


def yarn(given: ConfigJson) -> dict[str, Any]:
    factor, magnitude = given.take("factor"), given.take("attention_factor")
    each, all_of_it = given.take("mscale"), given.take("mscale_all_dim")
    if magnitude is None and each and all_of_it:
        magnitude = yarn_scale(factor, each) / yarn_scale(factor, all_of_it)
    return {
        "factor": factor,
        "original_len": given.take("original_max_position_embeddings"),
        "fast": given.take("beta_fast") or 32.0,  # 0 also means the default
        "slow": given.take("beta_slow") or 1.0,
        "truncate": bool(given.take("truncate")),  # null means false; if left out, true
        "magnitude": magnitude,
    }


ROPES: dict[str, tuple[str, type, Callable[[ConfigJson], dict[str, Any]]]] = {
    "default": ("rope", Default, unscaled),
    "linear": ("rope_linear", Linear, linear),
    "llama3": ("rope_llama3", Llama3, llama3),
    "yarn": ("rope_yarn", Yarn, yarn),
}
"""RoPE types of transformers: the option of model/pos, the table of keys, and the options to set."""


def yarn_scale(factor: float, mscale: float) -> float:
    """Return the scale of queries and keys for texts that are `factor` times longer."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def rope_settings(config: ConfigJson, *, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the RoPE settings from either form.

    Args:
        default: the settings for a config.json with neither form.
    """
    settings = either_form(config, default)
    settings.setdefault("rope_theta", config.take("rope_theta"))
    config.ignored("rope_theta", settings["rope_theta"])
    if (share := config.take("partial_rotary_factor")) is not None:
        share = settings.setdefault("partial_rotary_factor", share)
        config.ignored("partial_rotary_factor", share)
    return settings


def either_form(config: ConfigJson, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    older, newer = config.take("rope_scaling"), config.take("rope_parameters")
    if older and newer and older != newer:
        raise UserError(
            f"{config.name} has both rope_scaling and rope_parameters; transformers ignores the former. Remove one."
        )
    return dict(older or (default if newer is None else newer) or {})


def rope(
    config: ConfigJson,
    settings: Mapping[str, Any],
    at: str = "model.pos",
    *,
    partial: bool = False,
    width: int | None = None,
    preset: Sequence[str] = (),
) -> list[str]:
    """Return the overrides that choose a RoPE and set its options.

    Args:
        settings: the RoPE settings; see `rope_settings`.
        at: the key of the position option.
        partial: whether the class can rotate a fraction of each head's channels.
        width: channels of a head.
        preset: options of the preset's RoPE, removed if the chosen RoPE doesn't have them.
    """
    rope_type = type_of(config, settings)
    option, table, options = ROPES[rope_type]
    given = ConfigJson(with_lengths(config, settings, table), f"{config.name}'s rope of type {rope_type}")
    given.declare(table).unused("rope_type", "type")
    values = {**rotation(given, width or head_dim(config), partial), **options(given)}
    given.unread = {key for key in given.unread if given.values[key] is not None}
    if given.unread:
        raise UserError(
            f"{given.name} has {', '.join(sorted(given.unread))}, which transformers ignores. Remove it."
        )
    return [
        f"model/pos={option}" if at == "model.pos" else f"model/pos@{at}={option}",
        *(f"~{at}.{name}" for name in preset if name not in values),
        *overrides({f"{at}.{name}": value for name, value in values.items()}),
    ]


def type_of(config: ConfigJson, settings: Mapping[str, Any]) -> str:
    types = [settings[key] for key in ("rope_type", "type") if key in settings]
    if len(set(map(str, types))) > 1:
        raise UserError(
            f"{config.name} has a rope with rope_type={types[0]} and type={types[1]}, which transformers ignores."
            " Remove type."
        )
    if (rope_type := types[0] if types else "default") not in list(ROPES):
        raise UserError(
            f"{config.name} has a rope with rope_type={rope_type}, but minllm supports only {', '.join(ROPES)}."
        )
    return rope_type


def with_lengths(config: ConfigJson, settings: Mapping[str, Any], table: type) -> dict[str, Any]:
    """Return the RoPE settings, with missing ones derived from the model's maximum length."""
    settings = dict(settings)
    if "original_max_position_embeddings" not in table.__annotations__:
        return settings
    if "original_max_position_embeddings" in config.values:
        outside = config.take("original_max_position_embeddings")
        if settings.setdefault("original_max_position_embeddings", outside) != outside:
            raise UserError(
                f"{config.name} has original_max_position_embeddings={outside}, but its rope has another, which"
                " transformers ignores. Remove one of them."
            )
    longest = config.take("max_position_embeddings")
    original = settings.setdefault("original_max_position_embeddings", longest)
    if settings.get("factor", ...) is None and isinstance(original, int) and original > 0:
        settings["factor"] = longest / original
    return settings


def rotation(given: ConfigJson, width: int, partial: bool) -> dict[str, Any]:
    """Return θ and the fraction of a head's channels that are rotated.

    transformers rounds the number of channels down to an integer R. An odd R rotates R + 1 channels, with wavelengths
    θ^(2i/R); R + 1 with a larger θ is equivalent.
    """
    theta, share = given.take("rope_theta"), given.take("partial_rotary_factor")
    if not partial and share not in (None, 1):
        raise UserError(
            f"{given.name} has partial_rotary_factor={share}, which transformers ignores: this kind of model rotates"
            " all channels of a head. Remove it."
        )
    R = int(width * (1.0 if share is None else share))
    if R % 2:
        if width == R:
            raise UserError(
                f"{given.name} would rotate all {width} channels of a head, but channels are rotated in pairs, so their"
                " number must be even."
            )
        if given.table is Yarn:
            raise UserError(
                f"{given.name} would rotate {R} of {width} channels of a head, but YaRN needs an even number."
            )
        R, theta = R + 1, theta ** ((R + 1) / R)
    if R == 0:
        raise UserError(f"{given.name} rotates none of {width} channels. Set a larger partial_rotary_factor.")
    return {"theta": theta, "fraction": R / width}
