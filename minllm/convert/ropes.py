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
        magnitude = longer(factor, each) / longer(factor, all_of_it)
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


def longer(factor: float, mscale: float) -> float:
    """Return the scale of queries and keys for texts that are `factor` times longer."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def merged(config: ConfigJson, *, usual: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the RoPE settings from either form.

    Args:
        usual: the default for a config.json with neither form.
    """
    said = one_form(config, usual)
    said.setdefault("rope_theta", config.take("rope_theta"))
    config.ignored("rope_theta", said["rope_theta"])
    if (share := config.take("partial_rotary_factor")) is not None:
        share = said.setdefault("partial_rotary_factor", share)
        config.ignored("partial_rotary_factor", share)
    return said


def one_form(config: ConfigJson, usual: Mapping[str, Any] | None = None) -> dict[str, Any]:
    older, newer = config.take("rope_scaling"), config.take("rope_parameters")
    if older and newer and older != newer:
        raise UserError(
            f"{config.name} has both rope_scaling and rope_parameters; transformers ignores the former. Remove one."
        )
    return dict(older or (usual if newer is None else newer) or {})


def rope(
    config: ConfigJson,
    said: Mapping[str, Any],
    at: str = "model.pos",
    *,
    partly: bool = False,
    width: int | None = None,
    preset: Sequence[str] = (),
) -> list[str]:
    """Return the overrides that choose a RoPE and set its options.

    Args:
        said: the RoPE settings; see `merged`.
        at: the key of the position option.
        partly: whether the class can rotate a fraction of each head's channels.
        width: channels of a head.
        preset: options of the preset's RoPE, removed if the chosen RoPE doesn't have them.
    """
    their_type = type_of(config, said)
    ours, table, options = ROPES[their_type]
    given = ConfigJson(with_lengths(config, said, table), f"{config.name}'s rope of type {their_type}")
    given.declare(table).unused("rope_type", "type")
    values = {**turning(given, width or head_dim(config), partly), **options(given)}
    given.unread = {key for key in given.unread if given.values[key] is not None}
    if given.unread:
        raise UserError(
            f"{given.name} has {', '.join(sorted(given.unread))}, which transformers ignores. Remove it."
        )
    return [
        f"model/pos={ours}" if at == "model.pos" else f"model/pos@{at}={ours}",
        *(f"~{at}.{name}" for name in preset if name not in values),
        *overrides({f"{at}.{name}": value for name, value in values.items()}),
    ]


def type_of(config: ConfigJson, said: Mapping[str, Any]) -> str:
    types = [said[key] for key in ("rope_type", "type") if key in said]
    if len(set(map(str, types))) > 1:
        raise UserError(
            f"{config.name} has a rope with rope_type={types[0]} and type={types[1]}, which transformers ignores."
            " Remove type."
        )
    if (their_type := types[0] if types else "default") not in list(ROPES):
        raise UserError(
            f"{config.name} has a rope with rope_type={their_type}, but minllm supports only {', '.join(ROPES)}."
        )
    return their_type


def with_lengths(config: ConfigJson, said: Mapping[str, Any], table: type) -> dict[str, Any]:
    """Return the RoPE settings, with missing ones derived from the model's maximum length."""
    said = dict(said)
    if "original_max_position_embeddings" not in table.__annotations__:
        return said
    if "original_max_position_embeddings" in config.values:
        outside = config.take("original_max_position_embeddings")
        if said.setdefault("original_max_position_embeddings", outside) != outside:
            raise UserError(
                f"{config.name} has original_max_position_embeddings={outside}, but its rope has another, which"
                " transformers ignores. Remove one of them."
            )
    longest = config.take("max_position_embeddings")
    original = said.setdefault("original_max_position_embeddings", longest)
    if said.get("factor", ...) is None and isinstance(original, int) and original > 0:
        said["factor"] = longest / original
    return said


def turning(given: ConfigJson, width: int, partly: bool) -> dict[str, Any]:
    """Return θ and the fraction of a head's channels that are rotated.

    transformers rounds the number of channels down to an integer R. An odd R rotates R + 1 channels, with wavelengths
    θ^(2i/R); R + 1 with a larger θ is equivalent.
    """
    theta, share = given.take("rope_theta"), given.take("partial_rotary_factor")
    if not partly and share not in (None, 1):
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
