"""The one place where a configuration becomes an object: a node's `_target_`, called with the node's options."""

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
from minllm.schema.kinds import BRANCH, PLACES
from minllm.schema.options import Kind


def build(node: Mapping[str, Any], *args: Any, place: str | None = None) -> Any:
    """Return what a node configures: its `_target_`, called with `args` and, by keyword, the node's options.

    A node inside it arrives as a `functools.partial` of its own target and options: the owner calls it with what
    only the owner knows, such as a layer's width.

    Args:
        place: where it stands, for a node that has been taken out of its configuration.

    Raises:
        UserError: the target isn't of the kind that stands there, or its constructor refuses the options.
    """
    return part(node, place)(*args)


def part(node: Mapping[str, Any], key: str | None = None, kind: Kind | None = None) -> functools.partial[Any]:
    """Return a node's target with the node's options filled in."""
    root = node._get_root() if isinstance(node, DictConfig) else node
    if key is None:
        key, kind = place_of(node)
    target = locate(target_of(node, key), allowed_packages(root), key, kind or PLACES[key])
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
    """Return a value of the configuration as Python's own: lists, dicts, and partials for nodes with a target."""
    if has_target(value):
        return part(value, key, kind_for(annotation, key))
    if isinstance(value, Mapping):
        return {name: plain(value[name], annotation, f"{key}.{name}") for name in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one, annotation, key) for one in value]
    return float(value) if type(value) is int and means_float(annotation) else value
