"""OmegaConf's nodes as they are, except that plain ones are read, set, merged and copied directly.

A plain value is a string, a number or a truth value, and no interpolation or `???`. An untyped node has no declared
type, as those that YAML makes. Everything else is left to OmegaConf's own methods.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, KeysView
from typing import Any

from omegaconf import (
    AnyNode,
    BooleanNode,
    DictConfig,
    EnumNode,
    FloatNode,
    IntegerNode,
    ListConfig,
    StringNode,
)
from omegaconf.base import Metadata, Node
from omegaconf.basecontainer import BaseContainer

Own = Callable[..., Any]
"""OmegaConf's own method, which does what isn't done directly."""

KINDS = (AnyNode, StringNode, IntegerNode, FloatNode, BooleanNode, EnumNode, DictConfig, ListConfig)
"""The kinds of nodes that are copied directly."""


def replacements() -> dict[tuple[Any, str], Any]:
    """Return what takes the place of OmegaConf's own methods: {(class, name): a function}."""
    return {
        (DictConfig, "merge_with"): merge_directly(DictConfig.merge_with),
        (DictConfig, "_get_impl"): get_directly(DictConfig._get_impl),
        (DictConfig, "_get_node"): get_node_directly(DictConfig._get_node),
        (DictConfig, "_validate_and_normalize_key"): validate_key_directly(
            DictConfig._validate_and_normalize_key
        ),
        (DictConfig, "keys"): keys_directly(DictConfig.keys),
        (BaseContainer, "_set_item_impl"): set_directly(BaseContainer._set_item_impl),
        **{(kind, "__deepcopy__"): copied for kind in KINDS},
    }


def merge_directly(own: Own) -> Own:
    """Merge dictionaries as files have them without the checks of OmegaConf that are for those with types."""

    def merge(config: DictConfig, *others: Any) -> None:
        if config._get_flag("struct") or config._get_flag("readonly"):
            own(config, *others)
            return
        for other in others:
            if is_untyped_dict(config) and is_untyped_dict(other):
                put_into(config, other)
            else:
                own(config, other)

    def put_into(config: DictConfig, other: DictConfig) -> None:
        for name, node in other._content.items():
            present = config._content.get(name)
            if is_untyped_dict(present) and is_untyped_dict(node):
                put_into(present, node)
            elif present is None or (type(present) is type(node) is AnyNode and node._value() != "???"):
                config._content[name] = inside(config, node, {})
            else:
                only = object.__new__(DictConfig)
                only.__dict__.update(other.__dict__, _content={name: node})
                own(config, only)
        flags = other._metadata.flags
        config._metadata.flags.update({name: flag for name, flag in flags.items() if flag is not None})
        config._invalidate_flags_cache()

    return merge


def is_untyped_dict(node: Any) -> bool:
    """Whether a node is a dictionary as YAML makes it: no interpolation, `null` or `???`, and open to new names."""
    if type(node) is not DictConfig or not isinstance(node._content, dict):
        return False
    noted = node._metadata
    if any(flag for name, flag in noted.flags.items() if name not in OF_HYDRA):
        return False
    return noted.ref_type is Any and noted.object_type is dict and noted.element_type is Any is noted.key_type


OF_HYDRA = ("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS", "no_deepcopy_set_nodes")
"""Flags that are set while Hydra composes."""


def get_directly(own: Own) -> Own:
    """Return a value that is there and plain without the checks that missing keys and interpolations need."""

    def directly(config: DictConfig, key: Any, default_value: Any, validate_key: bool = True) -> Any:
        content = config.__dict__["_content"]
        node = content.get(key) if type(content) is dict and type(key) is str else None
        if type(node) is AnyNode:
            value = node.__dict__["_val"]
            if is_plain_value(value):
                return value
        elif type(node) in (DictConfig, ListConfig) and type(node.__dict__["_content"]) in (dict, list):
            return node
        return own(config, key, default_value, validate_key)

    return directly


def get_node_directly(own: Own) -> Own:
    """Return an existing child without validating access to it."""

    def get_node(config: DictConfig, key: Any, *args: Any, **options: Any) -> Any:
        content = config.__dict__["_content"]
        is_known = type(key) is str and type(content) is dict and not args and not options
        node = content.get(key) if is_known else None
        return own(config, key, *args, **options) if node is None else node

    return get_node


def validate_key_directly(own: Own) -> Own:
    """Skip the validation of a string key if the dictionary accepts keys of any type."""

    def normalized(config: DictConfig, key: Any) -> Any:
        is_known = type(key) is str and config.__dict__["_metadata"].key_type is Any
        return key if is_known else own(config, key)

    return normalized


def keys_directly(own: Own) -> Own:
    """Return the keys of a dictionary that isn't null, missing or an interpolation."""

    def keys(config: DictConfig) -> KeysView[Any]:
        content = config.__dict__["_content"]
        return content.keys() if type(content) is dict else own(config)

    return keys


def set_directly(own: Own) -> Own:
    """Replace values of untyped nodes by plain ones, and add plain values and untyped nodes to untyped containers."""

    def set_item(config: BaseContainer, key: Any, value: Any) -> None:
        is_open = not config._get_flag("readonly") and config._get_flag("convert") is None
        put = append_directly if type(config) is ListConfig else put_directly
        if not (is_open and put(config, config.__dict__["_content"], key, value)):
            own(config, key, value)

    return set_item


def put_directly(config: DictConfig, content: Any, key: Any, value: Any) -> bool:
    """Put a value into a dictionary, or return False."""
    if type(config) is not DictConfig or type(content) is not dict or type(key) is not str:
        return False
    present = content.get(key)
    if type(present) is AnyNode and is_plain_value(value) and not present._get_flag("readonly"):
        present.__dict__["_val"] = value
        return True
    if present is not None or not takes_anything(config):
        return False
    if value is None or is_plain_value(value):
        content[key] = new_node(AnyNode, value, key, config)
        return True
    if is_untyped(value) and not config._get_flag("no_deepcopy_set_nodes"):
        content[key] = inside(config, value, {})
        content[key]._metadata.key = key
        return True
    return False


def append_directly(config: ListConfig, content: Any, key: Any, value: Any) -> bool:
    """Put a plain value where `append` has made room in a list, or return False."""
    if type(content) is not list or type(key) is not int:
        return False
    kind = config.__dict__["_metadata"].element_type
    is_fit = is_plain_value(value) and (kind is Any or (kind is str and type(value) is str))
    if not is_fit or content[key] is not None:
        return False
    content[key] = new_node(AnyNode if kind is Any else StringNode, value, key, config)
    return True


def is_plain_value(value: Any) -> bool:
    if type(value) is str:
        return "${" not in value and "???" not in value
    return type(value) in (int, float, bool)


def is_untyped(node: Any) -> bool:
    if type(node) is ListConfig:
        noted = node._metadata
        is_any = noted.ref_type is Any is noted.element_type and noted.object_type is list
        return is_any and type(node._content) is list
    return type(node) is AnyNode or is_untyped_dict(node)


def takes_anything(config: DictConfig) -> bool:
    noted = config.__dict__["_metadata"]
    return noted.element_type is Any and noted.object_type is dict and not config._get_flag("struct")


def new_node(kind: type[Node], value: Any, key: Any, parent: BaseContainer) -> Node:
    ref_type, object_type = (str, str) if kind is StringNode else (Any, None)
    noted = Metadata(ref_type=ref_type, object_type=object_type, optional=kind is AnyNode, key=key)
    node: Node = object.__new__(kind)
    node.__dict__.update(_metadata=noted, _parent=parent, _flags_cache=None, _val=value)
    return node


def copied(node: Node, memo: dict[int, Any]) -> Node:
    """Copy a node as OmegaConf does, but without constructing an empty one first."""
    result: Node = object.__new__(type(node))
    noted = node._metadata
    metadata: Metadata = object.__new__(type(noted))
    metadata.__dict__.update(noted.__dict__, flags=None if noted.flags is None else dict(noted.flags))
    result.__dict__.update(node.__dict__, _metadata=metadata, _flags_cache=None)
    content = node.__dict__.get("_content")
    if isinstance(content, dict):
        result.__dict__["_content"] = {name: inside(result, value, memo) for name, value in content.items()}
    elif isinstance(content, list):
        result.__dict__["_content"] = [inside(result, value, memo) for value in content]
    if type(node) in (DictConfig, ListConfig):  # OmegaConf reads only those of containers
        resolved = noted.resolver_cache
        metadata.resolver_cache = copy.deepcopy(resolved, memo) if resolved else defaultdict(dict)
    return result


def inside(parent: Node, node: Node, memo: dict[int, Any]) -> Node:
    result = copied(node, memo) if type(node) in KINDS else copy.deepcopy(node, memo)
    result.__dict__["_parent"] = parent
    return result
