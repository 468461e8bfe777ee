"""`size.params=1e6`: the same budget for every arm of a comparison.

python run.py -m model/attn=mha,gqa,mqa size.params=1e6               each has a million parameters
python run.py model/layout=griffin size.flops_per_token=1e7           ten million FLOPs per token
python run.py model/attn=mla size.state_bytes=1e6 size.by=layers      a decoding state of one megabyte

The widths are solved for with the real model, on the meta device, and written into the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.schema.options import BelowOne, Positive

if TYPE_CHECKING:
    from minllm.model.lm import LM
    from minllm.model.solve import Sizes

TARGETS = {
    "params": "parameters",
    "params_active": "active parameters",
    "params_non_embedding": "parameters outside the embedding",
    "flops_per_token": "FLOPs per token",
    "state_bytes": "bytes of state",
}
GIVES_WAY = {"width": "layers", "layers": "width", "hidden": "width"}
"""What to change instead if one dimension alone can't meet the target."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The target size of a model, and what may be changed to reach it: the options under `size`.

    Args:
        params: number of parameters.
        params_active: number of parameters used by one token.
        params_non_embedding: number of parameters without the embeddings and an untied head.
        flops_per_token: floating-point operations per token in training, at `data.seq_len` tokens.
        state_bytes: bytes of decoding state after `data.seq_len` tokens, in fp32.
        by: what to change: the width, with hidden widths in proportion; only the hidden widths; or the number of
            layers. Hidden widths are adjusted to make up for rounding.
        within: tolerance, as a fraction of the target.

    Raises:
        UserError: there is more than one target.
    """

    params: Positive | None
    params_active: Positive | None
    params_non_embedding: Positive | None
    flops_per_token: Positive | None
    state_bytes: Positive | None
    by: Literal["width", "hidden", "layers"]
    within: BelowOne

    def __post_init__(self):
        given = [f"size.{name}" for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(
                f"A model can't be sized by {' and '.join(given)} at once: keep one, and remove the other."
            )

    @property
    def target(self) -> str:
        """The name of the target that is set."""
        return next(name for name in TARGETS if getattr(self, name) is not None)

    @property
    def wanted(self) -> float:
        """The value of the target."""
        return getattr(self, self.target)

    def off(self, figure: float) -> float:
        """Return the relative distance of a figure from the target."""
        return abs(figure - self.wanted) / self.wanted


def sized(cfg: DictConfig) -> DictConfig:
    """Return the configuration with widths that meet the target size; unchanged if there is no target.

    Raises:
        UserError: no widths meet it, or the configuration can't be built at all.
    """
    if not asks(cfg):
        return cfg
    from minllm.model.solve import configured, solve  # torch takes seconds

    validate(cfg)
    size: Size = build(cfg.size)
    found, figure = solve(cfg, size)
    if size.off(figure) > size.within:
        raise UserError(cannot_be_met(size, found, figure))
    result = cfg.copy()
    for key, before in configured(cfg).items():
        if found[key] != before:
            OmegaConf.update(result, key, found[key])
    return result


def asks(cfg: DictConfig) -> bool:
    """Whether a configuration has a target size; an invalid one counts, so that `validate` reports it."""
    section = cfg._get_node("size") if "size" in cfg else None
    if not isinstance(section, Mapping):
        return False
    return any(section._get_node(name)._value() is not None for name in TARGETS if name in list(section))


def refuse_size(cfg: DictConfig, key: str, named: set[str]) -> None:
    """Raise UserError if a target size is combined with another run's model, named by `key`."""
    asked = {name for name in named if name.partition(".")[0] == "size"}
    if asked or (key == "init_from" and asks(cfg)):
        name = min(asked, default="size")
        raise UserError(
            f"{name} can't be combined with {key}=, because that run's model already has its size. Remove one."
        )


def in_words(cfg: DictConfig, model: LM) -> str | None:
    """Describe how the model was sized, for a run's log; None if there is no target size."""
    if not asks(cfg):
        return None
    from minllm.model.solve import configured, figure_of

    size: Size = build(cfg.size)
    figure = figure_of(model, size.target, cfg.data.seq_len)
    apart = f"{distance(figure, size)} {size.wanted:,.0f}" if figure != size.wanted else "as asked"
    settings = settings_in_words(size, configured(cfg))
    return f"Sized by {size.by} to {figure:,.0f} {TARGETS[size.target]} ({apart}): {settings}."


# ---- sentences -----------------------------------------------------------------------------------


def cannot_be_met(size: Size, nearest: Sizes, figure: float) -> str:
    error = size.off(figure)
    if error < 0.2:
        cure = f"Accept it with size.within={math.ceil(error * 1000) / 1000:g}"
    else:
        cure = f"Ask for {'more' if figure > size.wanted else 'less'}"
    return (
        f"size.{size.target}={size.wanted:.0f} can't be met within {100 * size.within:g} %: the nearest is"
        f" {figure:,.0f} ({distance(figure, size)}), with {settings_in_words(size, nearest)}. {cure}, or let"
        f" something else give way: size.by={GIVES_WAY[size.by]}."
    )


def settings_in_words(size: Size, settings: Sizes) -> str:
    """Describe the solved settings: the width or number of layers, then the hidden widths."""
    first = {"width": "model.dim", "layers": "model.n_layers"}.get(size.by)
    widths = [key for key, value in settings.items() if key.endswith(".hidden") and value is not None]
    *others, last = [f"{key}={settings[key]}" for key in [*filter(None, [first]), *widths]]
    return f"{', '.join(others)} and {last}" if others else last


def distance(figure: float, size: Size) -> str:
    percent = 100 * size.off(figure)
    number = f"{percent:.2g}" if percent < 10 else f"{percent:,.0f}"
    return f"{number} % {'below' if figure < size.wanted else 'above'}"
