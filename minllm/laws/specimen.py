"""A small model that is tested instead of the trained one: the same configuration, few layers, random weights.

The model itself is never modified. Many bugs don't show with initial weights, where zero outputs and unit gains hide
later parts, so all parameters of the specimen are drawn at random.

Further layers only repeat the layout, so a specimen has four layers, or as many as include each layer of the layout
once. If it still has more than LARGE parameters, its widths are halved as long as the model can be built with them. Its
vocabulary is small, because nothing after the embedding depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from minllm.errors import UserError
from minllm.model.lm import LM
from minllm.model.parameter import Role
from minllm.schema.building import build

VOCABULARY = 61
LAYERS = 4
LARGE = 20_000_000
WIDE = 64
"""Integer options of at least this value are halved if a model is large."""
STRENGTHS = (1.0, 0.1, 0.0)
"""Scale of the noise added to initial weights: the next smaller one is used if outputs aren't finite."""


def specimen(cfg: DictConfig) -> LM:
    """Return a model as `cfg` configures it, on the CPU in fp32, small enough to be tested in a second.

    Its parameters aren't initialised: see `randomise`.

    Raises:
        UserError: two options can't be combined.
    """
    small = narrowed(with_layers(cfg))
    return build(small.model, vocabulary(cfg), build(small.norm))


def vocabulary(cfg: DictConfig) -> int:
    """Return the specimen's number of tokens: those of texts, and the objective's own."""
    return VOCABULARY + build(cfg.objective).extra_tokens


def randomise(model: LM, seed: int, strength: float, *, gates_open: bool = False) -> None:
    """Draw all parameters: initial values plus normal noise of a weight's usual scale times `strength`.

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
            scale = {"matrix": max(1, param.shape[-1]) ** -0.5, "embedding": 1.0}.get(role.kind, 0.3)
            if strength:
                value += strength * scale * torch.randn(param.shape, generator=generator)
            param.copy_(value)


def with_layers(cfg: DictConfig) -> DictConfig:
    """Return a configuration with the number of layers of a specimen."""
    if layout := OmegaConf.select(cfg, "model.encoder.layout"):
        shown = max(LAYERS, len(layout))
        cfg = changed(cfg, ("encoder", "n_layers"), min(cfg.model.encoder.n_layers, shown))
    shown = max(LAYERS, len(cfg.model.first) + len(cfg.model.layout))
    return changed(cfg, ("n_layers",), min(cfg.model.n_layers, shown))


def narrowed(cfg: DictConfig) -> DictConfig:
    """Return a configuration with halved widths, until its model has at most LARGE parameters or can't get smaller."""
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
    """Return the number of parameters of a model; None if it can't be built."""
    try:
        with torch.device("meta"):
            model = build(cfg.model, vocabulary(cfg), build(cfg.norm))
    except (UserError, ArithmeticError, AssertionError, RuntimeError, ValueError):
        return None  # external modules may raise any error if widths don't fit together
    return sum(param.numel() for param in model.parameters())


def widths(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of a model's large integer options, its own width first."""
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
