"""Reads what a config.json says of a rope, in the form of transformers 5 and in the one before it.

    rope_parameters: {rope_type: linear, factor: 4.0, rope_theta: 500.0}      # version 5
    rope_scaling: {type: linear, factor: 4.0}, rope_theta: 500.0              # before

Each type of rope has a table of its keys, as each family has a table of its settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minllm.convert.settings import Settings, head_dim, overrides
from minllm.errors import UserError
from minllm.schema.options import Count, Fraction, NonNegative, Positive


class Default:
    """The keys of every rope. `type` is what `rope_type` was called."""

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


def unscaled(given: Settings) -> dict[str, Any]:
    return {}


def linear(given: Settings) -> dict[str, Any]:
    return {"factor": given.take("factor")}


def llama3(given: Settings) -> dict[str, Any]:
    return {
        "factor": given.take("factor"),
        "original_len": given.take("original_max_position_embeddings"),
        "low": given.take("low_freq_factor"),
        "high": given.take("high_freq_factor"),
    }


def yarn(given: Settings) -> dict[str, Any]:
    factor, magnitude = given.take("factor"), given.take("attention_factor")
    each, all_of_it = given.take("mscale"), given.take("mscale_all_dim")
    if magnitude is None and each and all_of_it:
        magnitude = longer(factor, each) / longer(factor, all_of_it)
    return {
        "factor": factor,
        "original_len": given.take("original_max_position_embeddings"),
        "fast": given.take("beta_fast") or 32.0,  # 0 means the default too
        "slow": given.take("beta_slow") or 1.0,
        "truncate": bool(given.take("truncate")),  # null means false, and leaving it out true
        "magnitude": magnitude,
    }


ROPES: dict[str, tuple[str, type, Callable[[Settings], dict[str, Any]]]] = {
    "default": ("rope", Default, unscaled),
    "linear": ("rope_linear", Linear, linear),
    "llama3": ("rope_llama3", Llama3, llama3),
    "yarn": ("rope_yarn", Yarn, yarn),
}
"""Their rope types: our model/pos, the table of the keys, and what is set there."""


def longer(factor: float, mscale: float) -> float:
    """Return how much longer queries and keys are made for texts that are `factor` times longer."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def merged(config: Settings, *, usual: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the rope's settings, whichever form they have.

    Args:
        usual: what a config.json means that has neither form.
    """
    said = one_form(config, usual)
    said.setdefault("rope_theta", config.take("rope_theta"))
    config.ignored("rope_theta", said["rope_theta"])
    if (share := config.take("partial_rotary_factor")) is not None:
        share = said.setdefault("partial_rotary_factor", share)
        config.ignored("partial_rotary_factor", share)
    return said


def one_form(config: Settings, usual: Mapping[str, Any] | None = None) -> dict[str, Any]:
    older, newer = config.take("rope_scaling"), config.take("rope_parameters")
    if older and newer and older != newer:
        raise UserError(
            f"{config.name} has rope_scaling beside rope_parameters, which transformers ignores then: remove one."
        )
    return dict(older or (usual if newer is None else newer) or {})


def rope(
    config: Settings,
    said: Mapping[str, Any],
    at: str = "model.pos",
    *,
    partly: bool = False,
    width: int | None = None,
    preset: Sequence[str] = (),
) -> list[str]:
    """Return the choice of a RoPE and its settings.

    Args:
        said: the rope's settings; see `merged`.
        at: the place of the positions that are chosen.
        partly: the class can turn a part of each head.
        width: channels of a head.
        preset: options of the preset's rope that another rope may not have.
    """
    their_type = type_of(config, said)
    ours, table, options = ROPES[their_type]
    given = Settings(with_lengths(config, said, table), f"{config.name}'s rope of type {their_type}")
    given.declare(table).unused("rope_type", "type")
    values = {**turning(given, width or head_dim(config), partly), **options(given)}
    given.unread = {key for key in given.unread if given.values[key] is not None}
    if given.unread:
        raise UserError(
            f"{given.name} has {', '.join(sorted(given.unread))}, which transformers ignores: remove it."
        )
    return [
        f"model/pos={ours}" if at == "model.pos" else f"model/pos@{at}={ours}",
        *(f"~{at}.{name}" for name in preset if name not in values),
        *overrides({f"{at}.{name}": value for name, value in values.items()}),
    ]


def type_of(config: Settings, said: Mapping[str, Any]) -> str:
    types = [said[key] for key in ("rope_type", "type") if key in said]
    if len(set(map(str, types))) > 1:
        raise UserError(
            f"{config.name} has a rope with rope_type={types[0]} and type={types[1]}, which transformers ignores:"
            " remove type."
        )
    if (their_type := types[0] if types else "default") not in list(ROPES):
        raise UserError(
            f"{config.name} has a rope with rope_type={their_type}, and minllm knows {', '.join(ROPES)} only."
        )
    return their_type


def with_lengths(config: Settings, said: Mapping[str, Any], table: type) -> dict[str, Any]:
    """Return a rope's settings with what they leave to the length that the model was made for."""
    said = dict(said)
    if "original_max_position_embeddings" not in table.__annotations__:
        return said
    if "original_max_position_embeddings" in config.values:
        outside = config.take("original_max_position_embeddings")
        if said.setdefault("original_max_position_embeddings", outside) != outside:
            raise UserError(
                f"{config.name} has original_max_position_embeddings={outside}, and another one in its rope, which"
                " transformers ignores: remove one of them."
            )
    longest = config.take("max_position_embeddings")
    original = said.setdefault("original_max_position_embeddings", longest)
    if said.get("factor", ...) is None and isinstance(original, int) and original > 0:
        said["factor"] = longest / original
    return said


def turning(given: Settings, width: int, partly: bool) -> dict[str, Any]:
    """Return θ and the share of a head's channels that turn.

    transformers cuts the number of channels down to a whole one, R. An odd R turns R + 1 channels, at the wavelengths
    θ^(2i/R); so does R + 1 with a larger θ.
    """
    theta, share = given.take("rope_theta"), given.take("partial_rotary_factor")
    if not partly and share not in (None, 1):
        raise UserError(
            f"{given.name} has partial_rotary_factor={share}, which this kind of model has no use for: all channels of"
            " a head turn. Remove it."
        )
    R = int(width * (1.0 if share is None else share))
    if R % 2:
        if width == R:
            raise UserError(
                f"{given.name} would turn all {width} channels of a head, which is an odd number: channels turn in"
                " pairs."
            )
        if given.table is Yarn:
            raise UserError(
                f"{given.name} would turn {R} of {width} channels of a head, which is an odd number: YaRN isn't defined"
                " for it."
            )
        R, theta = R + 1, theta ** ((R + 1) / R)
    if R == 0:
        raise UserError(f"{given.name} turns none of {width} channels: set a larger partial_rotary_factor.")
    return {"theta": theta, "fraction": R / width}
