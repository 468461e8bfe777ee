"""A model to test in place of the one that is trained: the same configuration, few layers, random weights.

The model itself is never touched. At its initial weights most bugs would pass, since outputs that begin at zero and
gains of one hide what is behind them, so all parameters of the specimen are drawn anew.

Layers beyond the first four repeat what the layout's sentences have made already, so a specimen has four, or as many as
show each sentence once. If it still has more than LARGE parameters, its widths are halved as long as the model can be
built with them. Its vocabulary is small: what is behind the embedding doesn't depend on it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from minllm.config import build
from minllm.errors import UserError
from minllm.model.lm import LM
from minllm.model.parameter import Role

VOCABULARY = 61
LAYERS = 4
LARGE = 20_000_000
WIDE = 64
"""Options with whole numbers from here on are halved where a model is large."""
STRENGTHS = (1.0, 0.1, 0.0)
"""How far weights are moved from their initial values: less if what they give isn't finite."""


def specimen(cfg: DictConfig) -> LM:
    """Return a model as `cfg` configures it, on the CPU in fp32, small enough to be tested in a second.

    Its parameters have no values yet: see `randomise`.

    Raises:
        UserError: two options don't go together.
    """
    small = narrowed(with_layers(cfg))
    return build(small.model, VOCABULARY, build(small.norm))


def randomise(model: LM, seed: int, strength: float, *, gates_open: bool = False) -> None:
    """Draw all parameters: initial values, and normal noise of the usual size of a weight times `strength`.

    Args:
        gates_open: draw vectors around 0, whatever their initial values.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            role: Role = param.role
            value = torch.empty(param.shape)
            for part in value.split(role.parts) if role.parts else [value]:
                role.draw(part, generator)
            if gates_open and role.kind == "vector":
                value.zero_()
            usual = {"matrix": max(1, param.shape[-1]) ** -0.5, "embedding": 1.0}.get(role.kind, 0.3)
            if strength:
                value += strength * usual * torch.randn(param.shape, generator=generator)
            param.copy_(value)


def with_layers(cfg: DictConfig) -> DictConfig:
    """Return a configuration with as many layers as a specimen has."""
    shown = max(LAYERS, len(cfg.model.first) + len(cfg.model.layout))
    return changed(cfg, ("n_layers",), min(cfg.model.n_layers, shown))


def narrowed(cfg: DictConfig) -> DictConfig:
    """Return a configuration whose model has no more than LARGE parameters, as far as halving widths leads there."""
    size = parameters(cfg)
    while size is not None and size > LARGE:
        wide = list(widths(OmegaConf.to_container(cfg.model, resolve=False)))
        for paths in (wide, *([path] for path in wide)):  # all at once, or else one by one
            smaller = cfg
            for path in paths:
                smaller = changed(smaller, path, OmegaConf.select(smaller.model, ".".join(path)) // 2)
            now = parameters(smaller)
            if now is not None and now < size:
                break
        else:
            break
        cfg, size = smaller, now
    return cfg


def parameters(cfg: DictConfig) -> int | None:
    """Return how many parameters a model has; None where it can't be built."""
    try:
        with torch.device("meta"):
            model = build(cfg.model, VOCABULARY, build(cfg.norm))
    except (UserError, ArithmeticError, AssertionError, RuntimeError, ValueError):
        return None  # of a module from outside, whose widths may have to fit together: any width will do
    return sum(param.numel() for param in model.parameters())


def widths(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where a model's options have large whole numbers, its own width first."""
    for name, value in sorted(node.items(), key=lambda item: item[0] != "dim"):
        if isinstance(value, dict):
            yield from widths(value, (*path, name))
        elif type(value) is int and value >= WIDE:
            yield (*path, name)


def changed(cfg: DictConfig, path: tuple[str, ...], value: int) -> DictConfig:
    """Return a configuration in which an option of the model has another value."""
    cfg = copy.deepcopy(cfg)
    with read_write(cfg), open_dict(cfg):
        OmegaConf.update(cfg.model, ".".join(path), value)
    return cfg
