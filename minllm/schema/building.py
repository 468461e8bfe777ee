"""Instantiates sections of a configuration: a node's `_target_` is called with the node's options."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from minllm.schema.checking import (
    allowed_packages,
    branches_of,
    has_target,
    kind_for,
    locate,
    means_float,
    options_of,
    place_of,
    target_of,
)
from minllm.schema.kinds import BRANCH, SECTION_KINDS
from minllm.schema.options import Kind


def build(node: Mapping[str, Any], *args: Any, place: str | None = None) -> Any:
    """Instantiate a node: call its `_target_` with `args` and, by keyword, the node's options.

    A nested node is passed as a `functools.partial` of its own target and options. The owner calls it with the
    arguments that only the owner knows, such as a layer's width.

    Args:
        place: the key of the node, for a node that was taken out of its configuration.

    Raises:
        UserError: the target isn't of the kind required at this key, or its constructor rejects the options.
    """
    return part(node, place)(*args)


def part(node: Mapping[str, Any], key: str | None = None, kind: Kind | None = None) -> functools.partial[Any]:
    """Return a partial of a node's target with the node's options."""
    root = node._get_root() if isinstance(node, DictConfig) else node
    if key is None:
        key, kind = place_of(node)
    target = locate(target_of(node, key), allowed_packages(root), key, kind or SECTION_KINDS[key])
    options = options_of(target)
    filled = {
        options[name].name: plain(node[name], options[name].annotation, f"{key}.{name}")
        for name in node
        if name in options
    }
    branches = {
        name: part(node[name], f"{key}.{name}", BRANCH) for name in branches_of(node, target, options)
    }
    return functools.partial(target, **filled, **({"branches": branches} if branches else {}))


def plain(value: Any, annotation: Any, key: str) -> Any:
    """Return a value of the configuration as plain Python: lists, dicts, and partials for nodes with a target."""
    if has_target(value):
        return part(value, key, kind_for(annotation, key))
    if isinstance(value, Mapping):
        return {name: plain(value[name], annotation, f"{key}.{name}") for name in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item, annotation, key) for item in value]
    return float(value) if type(value) is int and means_float(annotation) else value
