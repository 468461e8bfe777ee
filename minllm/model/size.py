"""`size.params=1e6`: the same budget for every arm of a comparison.

python run.py -m model/attn=mha,gqa,mqa size.params=1e6               each has a million parameters
python run.py model/layout=griffin size.flops_per_token=1e7           or so many FLOPs a token
python run.py model/attn=mla size.state_bytes=1e6 size.by=layers      or so much to remember

The widths are solved with the real model, on the meta device, and written into the configuration.
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
    from minllm.model.solve import Settings

TARGETS = {
    "params": "parameters",
    "params_active": "active parameters",
    "params_non_embedding": "parameters outside the embedding",
    "flops_per_token": "FLOPs a token",
    "state_bytes": "bytes of state",
}
GIVES_WAY = {"width": "layers", "layers": "width", "hidden": "width"}
"""What else may grow or shrink where one thing alone doesn't do it."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model is to measure, and what may be changed for it: the options under `size`.

    Args:
        params: so many parameters.
        params_active: so many that one token meets.
        params_non_embedding: so many without the embeddings and without an untied head.
        flops_per_token: so many floating-point operations a token in training, at `data.seq_len` tokens.
        state_bytes: so many bytes are remembered after `data.seq_len` tokens, in fp32.
        by: what grows or shrinks: the width, and with it hidden widths in proportion; hidden widths alone; or the
            number of layers. Hidden widths take up what whole numbers leave over.
        within: how far from the target is near enough, as a share of it.

    Raises:
        UserError: there's more than one target.
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
                f"A model can't be sized by {' and '.join(given)} at once: keep one, and leave out the other."
            )

    @property
    def target(self) -> str:
        """The name of the figure that is given."""
        return next(name for name in TARGETS if getattr(self, name) is not None)

    @property
    def wanted(self) -> float:
        """The figure itself."""
        return getattr(self, self.target)

    def off(self, figure: float) -> float:
        """Return how far a figure is from the one that is wanted, as a share of that."""
        return abs(figure - self.wanted) / self.wanted


def sized(cfg: DictConfig) -> DictConfig:
    """Return the configuration with the widths that give the model the size asked for; as it is if none is.

    Raises:
        UserError: no widths do, or the configuration can't be built at all.
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
    """Whether a configuration asks for a size; what can't be read does, and `validate` says why."""
    section = cfg._get_node("size") if "size" in cfg else None
    if not isinstance(section, Mapping):
        return False
    return any(section._get_node(name)._value() is not None for name in TARGETS if name in list(section))


def refuse_size(cfg: DictConfig, key: str, named: set[str]) -> None:
    """Raise UserError if a size is asked of the model of another run, which `key` names: it has one already."""
    asked = {name for name in named if name.partition(".")[0] == "size"}
    if asked or (key == "init_from" and asks(cfg)):
        name = min(asked, default="size")
        raise UserError(
            f"{name} can't be combined with {key}=, since that run's model has its size already. Leave one out."
        )


def in_words(cfg: DictConfig, model: LM) -> str | None:
    """Say how the model was sized and what it measures, for a run's log; None if no size was asked for."""
    if not asks(cfg):
        return None
    from minllm.model.solve import configured, figure_of

    size: Size = build(cfg.size)
    figure = figure_of(model, size.target, cfg.data.seq_len)
    apart = f"{distance(figure, size)} {size.wanted:,.0f}" if figure != size.wanted else "as asked"
    settings = settings_in_words(size, configured(cfg))
    return f"Sized by {size.by} to {figure:,.0f} {TARGETS[size.target]} ({apart}): {settings}."


# ---- sentences -----------------------------------------------------------------------------------


def cannot_be_met(size: Size, nearest: Settings, figure: float) -> str:
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


def settings_in_words(size: Size, settings: Settings) -> str:
    """Say what was solved: what gives way first, then the hidden widths that are set."""
    first = {"width": "model.dim", "layers": "model.n_layers"}.get(size.by)
    widths = [key for key, value in settings.items() if key.endswith(".hidden") and value is not None]
    *others, last = [f"{key}={settings[key]}" for key in [*filter(None, [first]), *widths]]
    return f"{', '.join(others)} and {last}" if others else last


def distance(figure: float, size: Size) -> str:
    percent = 100 * size.off(figure)
    number = f"{percent:.2g}" if percent < 10 else f"{percent:,.0f}"
    return f"{number} % {'below' if figure < size.wanted else 'above'}"
