"""Hydra and OmegaConf as they are, except that what they have read, parsed and merged is kept for the next composition.

Plain dictionaries are merged, and plain values read, without OmegaConf's checks of types, too.
The tests compose some two thousand configurations, most of which share most of their files. Only what is made of files
in conf/ and of Hydra's own is kept: tests change no others than their own. The last few texts that were parsed, such as
the configurations of runs, are kept too.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import omegaconf.base
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.defaults_list import DefaultsList
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import (
    AnyNode,
    BooleanNode,
    DictConfig,
    EnumNode,
    FloatNode,
    IntegerNode,
    ListConfig,
    OmegaConf,
    StringNode,
)
from omegaconf.base import Metadata, Node

from minllm.schema.groups import CONF

Parse = Callable[[ConfigSource, str], ConfigResult]
Merge = Callable[[Any, Sequence[ResultDefault], Any], DictConfig]
ListDefaults = Callable[..., DefaultsList]
Create = Callable[..., Any]
Get = Callable[..., Any]


def compose_faster() -> None:
    """Compose in a half to a quarter of the time from now on, in this process."""
    for (owner, name), replacement in replacements().items():
        ORIGINALS[owner, name] = getattr(owner, name)
        setattr(owner, name, replacement)


ORIGINALS: dict[tuple[Any, str], Any] = {}
"""What `compose_faster` has replaced: {(class or module, name): the original}."""


def replacements() -> dict[tuple[Any, str], Any]:
    merge = "_compose_config_from_defaults_list"
    result: dict[tuple[Any, str], Any] = {
        (ConfigLoaderImpl, merge): merged_once(getattr(ConfigLoaderImpl, merge)),
        (config_loader_impl, "create_defaults_list"): listed_once(config_loader_impl.create_defaults_list),
        (DictConfig, "merge_with"): merged_directly(DictConfig.merge_with),
        (DictConfig, "_get_impl"): got_directly(DictConfig._get_impl),
        (omegaconf.base, "parse"): functools.cache(omegaconf.base.parse),  # nobody changes a tree
        (OmegaConf, "create"): read_once(OmegaConf.create),
    }
    for source in (FileConfigSource, ImportlibResourcesConfigSource):
        result[source, "load_config"] = parsed_once(source.load_config)
        result[source, "is_config"] = found_once(source.is_config)
        result[source, "is_group"] = found_once(source.is_group)
    for kind in KINDS:
        result[kind, "__deepcopy__"] = copied
    return result


KINDS = (AnyNode, StringNode, IntegerNode, FloatNode, BooleanNode, EnumNode, DictConfig, ListConfig)
"""The kinds of nodes that are copied directly."""


def parsed_once(parse: Parse) -> Parse:
    known = found_once(parse)

    def load_config(source: ConfigSource, config_path: str) -> ConfigResult:
        result = known(source, config_path)
        return replace(result, config=copy.deepcopy(result.config), header=dict(result.header))

    return load_config


def found_once(find: Callable[[ConfigSource, str], Any]) -> Callable[[ConfigSource, str], Any]:
    results: dict[tuple[str, ...], Any] = {}

    def once(source: ConfigSource, config_path: str) -> Any:
        if not is_fixed(source):
            return find(source, config_path)
        key = (source.provider, source.path, config_path)
        if key not in results:
            results[key] = find(source, config_path)
        return results[key]

    return once


def merged_once(merge: Merge) -> Merge:
    """Keep what lists of defaults make, and what Hydra's own files make, with which every list begins."""
    results: dict[tuple[Any, ...], DictConfig] = {}

    def kept(key: tuple[Any, ...], loader: Any, defaults: Sequence[ResultDefault], repo: Any) -> DictConfig:
        if key not in results:
            results[key] = merge(loader, defaults, repo)
        return copy.deepcopy(results[key])

    def once(loader: Any, defaults: Sequence[ResultDefault], repo: Any) -> DictConfig:
        if not all(map(is_fixed, repo.get_sources())):
            return merge(loader, defaults, repo)
        key = tuple((item.config_path, item.package, item.primary) for item in defaults)
        own = [*itertools.takewhile(lambda item: item.config_path.startswith("hydra/"), defaults)]
        if key in results or not own:
            return kept(key, loader, defaults, repo)
        begun = ResultDefault(config_path="hydra/")

        def load(default: ResultDefault, repo: Any) -> Any:
            if default is begun:
                return SimpleNamespace(config=kept(key[: len(own)], loader, own, repo))
            return loader._load_single_config(default=default, repo=repo)

        return kept(key, SimpleNamespace(_load_single_config=load), [begun, *defaults[len(own) :]], repo)

    return once


def listed_once(list_defaults: ListDefaults) -> ListDefaults:
    """Keep the list of defaults that choices make; overrides that set values are only passed through it."""
    results: dict[tuple[Any, ...], DefaultsList] = {}

    def once(
        repo: Any, config_name: str, overrides_list: Sequence[Override], **settings: bool
    ) -> DefaultsList:
        values, choices = [], []
        for override in overrides_list:
            if not override.is_sweep_override():
                (choices if is_choice(override, repo) else values).append(override)
        sources = repo.get_sources()
        lines = tuple(override.input_line for override in choices)
        key = (
            config_name,
            lines,
            *settings.values(),
            *((source.provider, source.path) for source in sources),
        )
        if key in results:
            return replace(results[key], config_overrides=values)
        listed = list_defaults(repo, config_name, overrides_list, **settings)
        if all(map(is_fixed, sources)) and listed.config_overrides == values:
            results[key] = listed
        return listed

    return once


def is_choice(override: Override, repo: Any) -> bool:
    """Whether an override chooses an option of a group, or a file, and doesn't just set a value."""
    if override.is_value_path:
        return False
    return repo.group_exists(override.key_or_group) or repo.config_exists(override.key_or_group)


def merged_directly(merge_with: Callable[..., None]) -> Callable[..., None]:
    """Merge dictionaries as files have them without the checks of OmegaConf that are for those with types."""

    def merge(config: DictConfig, *others: Any) -> None:
        if config._get_flag("struct") or config._get_flag("readonly"):
            merge_with(config, *others)
            return
        for other in others:
            if is_plain(config) and is_plain(other):
                put_into(config, other)
            else:
                merge_with(config, other)

    def put_into(config: DictConfig, other: DictConfig) -> None:
        for name, node in other._content.items():
            own = config._content.get(name)
            if is_plain(own) and is_plain(node):
                put_into(own, node)
            elif own is None or (type(own) is type(node) is AnyNode and node._value() != "???"):
                config._content[name] = inside(config, node, {})
            else:
                only = object.__new__(DictConfig)
                only.__dict__.update(other.__dict__, _content={name: node})
                merge_with(config, only)
        flags = other._metadata.flags
        config._metadata.flags.update({name: flag for name, flag in flags.items() if flag is not None})
        config._invalidate_flags_cache()

    return merge


def is_plain(node: Any) -> bool:
    """Whether a node is a dictionary as YAML makes it: no interpolation, `null` or `???`, and open to new names."""
    if type(node) is not DictConfig or not isinstance(node._content, dict):
        return False
    noted = node._metadata
    if any(flag for name, flag in noted.flags.items() if name not in OF_HYDRA):
        return False
    return noted.ref_type is Any and noted.object_type is dict and noted.element_type is Any is noted.key_type


OF_HYDRA = ("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS", "no_deepcopy_set_nodes")
"""Flags that are set while Hydra composes."""


def got_directly(get: Get) -> Get:
    """Return a value that is there and plain without the checks that missing keys and interpolations need."""

    def directly(config: DictConfig, key: Any, default_value: Any, validate_key: bool = True) -> Any:
        content = config.__dict__["_content"]
        node = content.get(key) if type(content) is dict and type(key) is str else None
        if type(node) is AnyNode:
            value = node.__dict__["_val"]
            if value is not None and (type(value) is not str or not ("${" in value or value == "???")):
                return value
        elif type(node) in (DictConfig, ListConfig) and type(node.__dict__["_content"]) in (dict, list):
            return node
        return get(config, key, default_value, validate_key)

    return directly


def read_once(create: Create) -> Create:
    """Keep what the last few texts say: a run's configuration is read by each command that is about the run."""
    known = functools.lru_cache(16)(create)

    def once(*args: Any, **options: Any) -> Any:
        is_text = len(args) == 1 and isinstance(args[0], str) and not options
        return copy.deepcopy(known(args[0])) if is_text else create(*args, **options)

    return once


def is_fixed(source: ConfigSource) -> bool:
    return source.scheme() != "file" or source.path == str(CONF)


def copied(node: Node, memo: dict[int, Any]) -> Node:
    """Copy a node as OmegaConf does, but without constructing an empty one first."""
    result: Node = object.__new__(type(node))
    content = node.__dict__.get("_content")
    result.__dict__.update(node.__dict__, _metadata=copied_metadata(node._metadata, memo), _flags_cache=None)
    if isinstance(content, dict):
        result.__dict__["_content"] = {name: inside(result, value, memo) for name, value in content.items()}
    elif isinstance(content, list):
        result.__dict__["_content"] = [inside(result, value, memo) for value in content]
    return result


def inside(parent: Node, node: Node, memo: dict[int, Any]) -> Node:
    result = copied(node, memo) if type(node) in KINDS else copy.deepcopy(node, memo)
    result.__dict__["_parent"] = parent
    return result


def copied_metadata(metadata: Metadata, memo: dict[int, Any]) -> Metadata:
    result: Metadata = object.__new__(type(metadata))
    flags, resolved = metadata.flags, metadata.resolver_cache
    result.__dict__.update(
        metadata.__dict__,
        flags=None if flags is None else dict(flags),
        resolver_cache=copy.deepcopy(resolved, memo) if resolved else defaultdict(dict),
    )
    return result
