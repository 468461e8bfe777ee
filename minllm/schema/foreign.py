"""Restrictions on configuration files from other sources, which are data and must not execute anything.

External files are those outside conf/: of `--config-dir`, `--config-path` and `hydra.searchpath`. They may choose and
set options. They must not configure Hydra (whose callbacks and logging call code), choose a task, set extensions, or
read environment variables. They are checked when Hydra loads them, before it acts on their content.
"""

from __future__ import annotations

import contextlib
import functools
import posixpath
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from minllm.errors import UserError, suggest
from minllm.schema.groups import CONF, MAPPING
from minllm.schema.overrides import key_of

HYDRA_KEYS_OF_FILES = ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs")
RESOLVERS = ("oc.select", "now")
"""Resolvers that a file's interpolations may call: none that reads the environment or evaluates text."""
COMMAND_LINE_ONLY = (
    "hydra",
    "task",
    "extensions",
    "choices",
    "typed",
    "resume",
    "run",
    "init_from",
    "branch_from",
)
"""Keys that only the command line may set."""
SECTIONS_OF_SEARCH = (
    *("search", "sweep", "memory", "arms", "ladder", "mixers", "probes", "models", "datasets"),
    *("finding", "grader", "judge"),
)
"""Sections that configure a search or what is made of its runs; no part of a trial, but a file may set them."""
TEXTS = (
    *("mixers", "probes", "models", "datasets", "search.sizes"),
    *(f"finding.{key}" for key in ("arms", "overrides", "gpu", "parts", "gpu_parts")),
)
"""Keys whose values are texts with several overrides."""
DEEPEST = 50
"""The maximum nesting of a file's sections, because the libraries that merge them are recursive."""


# ---- files ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_checked() -> Iterator[None]:
    """Check each external file that Hydra loads within this context.

    Raises:
        UserError: from the composition in the context, if a file contains something that isn't allowed.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    global _checking, _load
    with _changing:
        if _checking == 0:
            _load = ConfigLoaderImpl._load_single_config
            ConfigLoaderImpl._load_single_config = _checked  # type: ignore[method-assign]
        _checking += 1
    try:
        yield
    finally:
        with _changing:
            _checking -= 1
            if _checking == 0:
                ConfigLoaderImpl._load_single_config = _load  # type: ignore[method-assign]


_changing = threading.Lock()
_checking = 0
"""The number of active `files_checked`: threads may compose at once, and the last one restores Hydra's method."""
_load: Any = None


def _checked(self: Any, default: Any, repo: Any) -> Any:
    loaded = _load(self, default, repo)
    if is_external(loaded):
        raw = repo.load_config(default.config_path)
        if not isinstance(raw.config, DictConfig):
            raise UserError(f"{default.config_path}.yaml {MAPPING}")
        check_file(default.config_path, loaded.config, raw.defaults_list or [], default.primary)
    return loaded


def is_external(loaded: Any) -> bool:
    scheme, _, folder = loaded.path.partition("://")
    if scheme == "file":
        return folder != str(CONF) and Path(folder).resolve() != CONF
    return loaded.provider.startswith("hydra.searchpath")


def check_file(name: str, config: Container, defaults: Sequence[Any], primary: bool) -> None:
    """Check one file: the keys that it sets, in their final position, and its defaults list.

    Args:
        name: its path relative to its folder of options, such as experiment/mine.
        primary: whether the command line names it by --config-name or --config-path.
    """
    from minllm.schema.checking import options_of, root_options

    check_interpolations(config, f"{name}.yaml")
    for default in defaults:
        check_default(name, default, primary)
    own = CONF / f"{name}.yaml"
    same = (
        dict(leaves(OmegaConf.load(own))) if own.is_file() else {}
    )  # a copy of a file in conf/ may set the same values
    for key, value in leaves(config):
        if key.count(".") > DEEPEST:
            raise UserError(f"{name}.yaml is nested too deeply to be read.")
        if (
            key.partition(".")[0] == "hydra"
            and key not in HYDRA_KEYS_OF_FILES
            and same.get(key, ...) != value
        ):
            raise UserError(
                f"{name}.yaml sets {key}, but the only keys of Hydra that a file may set are"
                f" {' and '.join(HYDRA_KEYS_OF_FILES)}. Type {key}=… instead."
            )
    settable = [*options_of(root_options), *SECTIONS_OF_SEARCH, "hydra"]
    is_task = primary or name.startswith("task/")
    for key in config if isinstance(config, DictConfig) else []:
        value = "???" if OmegaConf.is_missing(config, key) else config._get_node(key)._value()
        empty = value in (None, "???", [])
        forbidden = key in COMMAND_LINE_ONLY and key != "hydra" and not (is_task and (empty or key == "task"))
        if forbidden and key == "extensions":
            raise UserError(
                f"A file can't set extensions, which run code. If you trust {name}.yaml, add"
                f" 'extensions=[{listed(value)}]'."
            )
        if forbidden or not (is_task or key in settable):
            raise UserError(
                f"{name}.yaml sets {key}, but a file can't choose a task or set an option of one. Type"
                f" {key}=… instead.{'' if forbidden else near(str(key), settable)}"
            )
    target = OmegaConf.select(config, "task._target_", throw_on_missing=False)
    if primary or not is_task or str(target).startswith("minllm."):
        check_task_options(name, config, same)
    check_output_paths(name, config, same)
    check_endpoints(name, config, same)
    check_trial_overrides(name, config)


def check_default(name: str, default: Any, primary: bool) -> None:
    """Check one entry of a file's defaults list: `override /hydra/launcher: x` isn't allowed."""
    group = getattr(default, "group", None)
    values = [] if group is None else default.value if isinstance(default.value, list) else [default.value]
    here = posixpath.join("/", posixpath.dirname(name), group or getattr(default, "path", None) or "")
    chosen = [
        posixpath.normpath(posixpath.join(here, str(value or ""))).strip("/") for value in values or [""]
    ]
    package = (getattr(default, "package", None) or "").split(".")
    known = primary and chosen in (
        ["hydra/job_logging/stdout"],
        ["hydra/sweeper/pruning"],
        ["hydra/launcher/processes"],
    )
    for choice in chosen:
        first = choice.partition("/")[0]
        if (first == "hydra" or "hydra" in package) and not known:
            raise UserError(
                f"{name}.yaml chooses {choice}, but a file can't configure Hydra. Type it on the command line."
            )
        if (first == "task" or "task" in package) and not (primary or name.startswith("task/")):
            raise UserError(
                f"{name}.yaml chooses {choice}, but a file can't choose a task. Type task=… instead."
            )


def check_task_options(name: str, config: Container, same: Mapping[str, Any]) -> None:
    """Reject options of minllm's tasks, at the root or in a section, such as remove and tokenizer.into."""
    from minllm.schema.checking import options_of, root_options
    from minllm.schema.groups import read_option

    keys = {key for file in (CONF / "task").glob("*.yaml") for key in read_option(file).keys}
    keys -= {*options_of(root_options), "task", "task._target_"}
    for key, value in leaves(config):
        parts = key.split(".")
        is_option = parts[0] in keys or ".".join(parts[:2]) in keys
        if is_option and value not in (None, "???") and same.get(key, ...) != value:
            raise UserError(
                f"{name}.yaml sets {key}, but a file can't set an option of a task. Type {key}=… instead."
            )


def check_output_paths(name: str, config: Container, same: Mapping[str, Any]) -> None:
    """Reject an output path outside the working directory, or with an interpolation."""
    for key, value in leaves(config):
        is_place = (key.rpartition(".")[2] == "cache" or key == "sweep.storage") and isinstance(value, str)
        if is_place and ("${" in value or is_outside(value)) and same.get(key) != value:
            raise UserError(
                f"{name}.yaml sets {key}={value}, but a file can't choose an output path outside the working directory."
                f" If you trust it, type {key}={value}"
            )


def check_endpoints(name: str, config: Container, same: Mapping[str, Any]) -> None:
    """Reject a judge's address and the name of its key: they send a variable of the environment somewhere."""
    for key, value in leaves(config):
        section, _, option = key.rpartition(".")
        is_judges = section.rpartition(".")[2] == "judge" and option in ("base_url", "key")
        if is_judges and value is not None and same.get(key) != value:
            raise UserError(
                f"{name}.yaml sets {key}, but a file can't choose where texts and a key are sent. Type {key}=…"
                " instead."
            )


def check_trial_overrides(name: str, config: Container) -> None:
    """Reject forbidden keys in sections that become overrides of a trial."""

    def section(key: str) -> Any:
        return OmegaConf.select(config, key, throw_on_resolution_failure=False, throw_on_missing=False)

    keys = [*keys_in(section("search")), *keys_in(section("sweep.trial"))]
    keys += [key_of(value) for _, value in leaves(section("arms")) if isinstance(value, str)]
    of_texts = [
        key for texts in TEXTS for _, text in leaves(section(texts)) for key in keys_in_text(str(text))
    ]
    keys += [part for key in of_texts for part in [key, *re.split(r"[./]", key)]]
    for key in (key.strip("'\"+~ \t\r\n") for key in keys):
        if is_command_line_only(key) or re.match(r"(sweep|judge)\b", key):
            raise UserError(
                f"{name}.yaml makes {key} an override of its trials, which only the command line may do. Type it there."
            )


def is_command_line_only(key: str) -> bool:
    """Whether only the command line may set a key, because of its name or of its package after an @."""
    tops = {re.split("[./]", part.removeprefix("_global_."))[0] for part in re.split("[@:]", key)}
    is_place = re.split("[./]", key)[-1] == "cache"
    return key.startswith("-") or "${" in key or is_place or not tops.isdisjoint(COMMAND_LINE_ONLY)


def keys_in_text(text: str) -> list[str]:
    """Return what may be a key in overrides, and in the mappings that they set, however these are quoted."""
    return re.findall(r"""([^\s,\[\]{}()'"=:]+)['"\s]*[=:]""", text.replace("\\", ""))


def keys_in(config: Any) -> Iterator[str]:
    """Yield the keys of a section, and of those inside it."""
    for key, value in config.items() if isinstance(config, Mapping) else []:
        yield str(key)
        yield from keys_in(value)


def near(key: str, settable: Sequence[str]) -> str:
    suggestion = suggest(key, settable)
    return suggestion if suggestion.startswith(" Did") else ""


def listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


# ---- interpolations ------------------------------------------------------------------------------


def check_interpolations(config: Container, where: str) -> None:
    """Reject values that call a resolver not allowed in files, such as ${oc.env:HOME}."""
    for key, value in leaves(config):
        if isinstance(value, str) and not is_harmless(value):
            raise UserError(
                f"{where} sets {key}={value}, but a file can refer only to other options, not to the environment."
                f" Type {key}=… instead."
            )


@functools.lru_cache(4096)  # parsing is slow, and the same values are checked in every composition
def is_harmless(value: str) -> bool:
    """Whether text calls only allowed resolvers, both as it is and without its backslashes."""
    return all(map(calls_allowed_resolvers, {value, value.replace("\\", "")}))


def calls_allowed_resolvers(value: str) -> bool:
    from omegaconf.grammar_parser import parse

    if "${" not in value:
        return True
    try:
        waiting = [parse(value)]
    except GrammarParseError:
        return False
    while waiting:
        node = waiting.pop()
        calls = type(node).__name__ == "InterpolationResolverContext"
        if calls and node.resolverName().getText() not in RESOLVERS:
            return False
        waiting += (
            [node.getChild(i) for i in range(node.getChildCount())] if hasattr(node, "getChild") else []
        )
    return True


def frozen(cfg: DictConfig) -> DictConfig:
    """Return a configuration in which interpolations of the environment are replaced by their values."""
    for key, value in [*leaves(cfg)]:
        if isinstance(value, str) and not is_harmless(value):
            with contextlib.suppress(OmegaConfBaseException):  # validate reports it
                OmegaConf.update(cfg, key, OmegaConf.select(cfg, key))
    return cfg


def refuse_environment(hydra_cfg: DictConfig) -> None:
    """Reject environment variables set by a file, because they can make other programs run code."""
    if hydra_cfg.job.env_set and not any(
        "hydra.job.env_set" in override for override in hydra_cfg.overrides.hydra
    ):
        raise UserError("A file can't set environment variables (hydra.job.env_set). Set them in the shell.")


# ---- values ------------------------------------------------------------------------------------


def is_outside(place: str) -> bool:
    """Whether a path is outside the working directory."""
    here = Path.cwd().resolve()
    try:
        there = Path(place).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return True
    return "://" in place or not there.is_relative_to(here)


def leaves(config: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a configuration, unresolved, with its key: ("model.dim", 128)."""
    if isinstance(config, (DictConfig, ListConfig)):
        if not isinstance(config._content, (dict, list)):  # None, ??? or an interpolation
            yield above, config._value()
            return
        names = list(config) if isinstance(config, DictConfig) else range(len(config))
        inner = [(str(name), config._get_node(name)) for name in names]
    elif isinstance(config, Mapping):
        inner = [(str(name), value) for name, value in config.items()]
    else:
        yield above, config._value() if hasattr(config, "_value") else config
        return
    for name, value in inner:
        yield from leaves(value, f"{above}.{name}" if above else name)
