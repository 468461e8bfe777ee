"""What a file or a run from elsewhere may not say: options of others are data, and only the command line gives orders.

Files are those outside conf/: of `--config-dir`, `--config-path` and `hydra.searchpath`. They choose and set options.
They don't configure Hydra, whose callbacks and logging call code; choose no task and allow no packages; and read no
environment variables. They are checked as Hydra loads them, before it acts on what they say.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import posixpath
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from minllm.errors import UserError, suggest
from minllm.explain import MAPPING
from minllm.help import CONF
from minllm.words import key_of

HYDRA_OF_FILES = ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs")
RESOLVERS = ("oc.select", "now")
"""What an interpolation of a file may call: neither the environment, nor what evaluates a text."""
ORDERS = ("hydra", "task", "extensions", "choices", "typed", "resume", "run", "init_from")
"""Keys that only the command line sets."""
SECTIONS_OF_SEARCH = ("search", "sweep", "memory", "arms")
NAMES_A_PLACE = re.compile(r"path|file|folder|dir|cache|root")
DEFAULT_CACHE = ".cache/stores"
FOREIGN = "from elsewhere: "
"""What a place begins with that a run from elsewhere names and that must not be used."""
KEY_BYTES = 32
DEEPEST = 50
"""Sections of a file inside each other: the libraries that merge them call themselves for each."""


# ---- files ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_checked() -> Iterator[None]:
    """Have each file from elsewhere checked that Hydra loads inside.

    Raises:
        UserError: where a configuration is composed inside, a file says what it may not.
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
"""How many are inside `files_checked`: threads may compose at once, and the last of them puts Hydra's own back."""
_load: Any = None


def _checked(self: Any, default: Any, repo: Any) -> Any:
    loaded = _load(self, default, repo)
    if is_elsewhere(loaded):
        found = repo.load_config(default.config_path)
        if not isinstance(found.config, DictConfig):
            raise UserError(f"{default.config_path}.yaml {MAPPING}")
        check_file(default.config_path, loaded.config, found.defaults_list or [], default.primary)
    return loaded


def is_elsewhere(loaded: Any) -> bool:
    scheme, _, folder = loaded.path.partition("://")
    if scheme == "file":
        return Path(folder).resolve() != CONF
    return loaded.provider.startswith("hydra.searchpath")


def check_file(name: str, config: Container, defaults: Sequence[Any], primary: bool) -> None:
    """Check one file: what it sets, at the places where it sets it, and what its list of defaults chooses.

    Args:
        name: its path below its folder of options, such as experiment/mine.
        primary: whether the command line names it by --config-name or --config-path.
    """
    from minllm.validation import options_of, root_options

    check_interpolations(config, f"{name}.yaml")
    for default in defaults:
        check_default(name, default, primary)
    own = CONF / f"{name}.yaml"
    same = dict(leaves(OmegaConf.load(own))) if own.is_file() else {}  # a copy of ours may say what ours does
    for key, value in leaves(config):
        if key.count(".") > DEEPEST:
            raise UserError(f"{name}.yaml is nested too deeply to be read.")
        if key.partition(".")[0] == "hydra" and key not in HYDRA_OF_FILES and same.get(key, ...) != value:
            raise UserError(
                f"{name}.yaml sets {key}, and a file can set nothing of Hydra's but {' and '.join(HYDRA_OF_FILES)}."
                f" If you want it, type it: {key}=…"
            )
    settable = [*options_of(root_options), *SECTIONS_OF_SEARCH, "hydra"]
    is_task = primary or name.startswith("task/")
    for key in config if isinstance(config, DictConfig) else []:
        value = "???" if OmegaConf.is_missing(config, key) else config._get_node(key)._value()
        empty = value in (None, "???", [])
        ordered = key in ORDERS and key != "hydra" and not (is_task and (empty or key == "task"))
        if ordered and key == "extensions":
            raise UserError(
                f"A file can't allow itself to run code. If you trust {name}.yaml, add 'extensions=[{listed(value)}]'."
            )
        if ordered or not (is_task or key in settable):
            raise UserError(
                f"{name}.yaml sets {key}: a file chooses no task, and sets no option of one. Type"
                f" {key}=… instead.{'' if ordered else near(str(key), settable)}"
            )
    target = OmegaConf.select(config, "task._target_", throw_on_missing=False)
    if primary or not is_task or str(target).startswith("minllm."):
        check_task_options(name, config, same)
    check_written(name, config, same)
    check_words(name, config)


def check_default(name: str, default: Any, primary: bool) -> None:
    """Check one line of a file's list of defaults: `override /hydra/launcher: x` isn't a file's to say."""
    group = getattr(default, "group", None)
    values = [] if group is None else default.value if isinstance(default.value, list) else [default.value]
    here = posixpath.join("/", posixpath.dirname(name), group or getattr(default, "path", None) or "")
    chosen = [
        posixpath.normpath(posixpath.join(here, str(value or ""))).strip("/") for value in values or [""]
    ]
    package = (getattr(default, "package", None) or "").split(".")
    ours = primary and chosen in (
        ["hydra/job_logging/stdout"],
        ["hydra/sweeper/pruning"],
        ["hydra/launcher/processes"],
    )
    for one in chosen:
        first = one.partition("/")[0]
        if (first == "hydra" or "hydra" in package) and not ours:
            raise UserError(
                f"{name}.yaml chooses {one}, and a file can't configure Hydra. Type it, if you want it."
            )
        if (first == "task" or "task" in package) and not (primary or name.startswith("task/")):
            raise UserError(f"{name}.yaml chooses {one}: a file chooses no task. Type task=… instead.")


def check_task_options(name: str, config: Container, same: Mapping[str, Any]) -> None:
    """Refuse options of minllm's own tasks, at the root or in a section, such as remove and tokenizer.into."""
    from minllm.help import read_option
    from minllm.validation import options_of, root_options

    keys = {key for file in (CONF / "task").glob("*.yaml") for key in read_option(file).keys}
    keys -= {*options_of(root_options), "task", "task._target_"}
    for key, value in leaves(config):
        parts = key.split(".")
        is_option = parts[0] in keys or ".".join(parts[:2]) in keys
        if is_option and value not in (None, "???") and same.get(key, ...) != value:
            raise UserError(f"{name}.yaml sets {key}, an option of a task. Type {key}=… instead.")


def check_written(name: str, config: Container, same: Mapping[str, Any]) -> None:
    """Refuse a place to write to that is outside of the working directory, or isn't known before all is composed."""
    for key, value in leaves(config):
        is_place = (key.rpartition(".")[2] == "cache" or key == "sweep.storage") and isinstance(value, str)
        if is_place and ("${" in value or leads_out(value)) and same.get(key) != value:
            raise UserError(
                f"{name}.yaml sets {key}={value}, and a file can't choose a place to write to that is outside of the"
                f" working directory. If you want it, type it: {key}={value}"
            )


def check_words(name: str, config: Container) -> None:
    """Refuse orders among what becomes words of a trial's command line."""

    def section(key: str) -> Any:
        return OmegaConf.select(config, key, throw_on_resolution_failure=False, throw_on_missing=False)

    words = [*keys_in(section("search")), *keys_in(section("sweep.trial"))]
    words += [value for _, value in leaves(section("arms")) if isinstance(value, str)]
    for word in words:
        if gives_orders(key := key_of(word).strip("'\"+~ \t\r\n")):
            raise UserError(
                f"{name}.yaml makes {key} a word of each trial, which only the command line may: type it."
            )


def gives_orders(key: str) -> bool:
    """Whether a word's key is only the command line's to set, by its name or by the package behind an @."""
    tops = {re.split("[./]", part.removeprefix("_global_."))[0] for part in re.split("[@:]", key)}
    is_place = re.split("[./]", key)[-1] == "cache"
    return key.startswith("-") or "${" in key or is_place or not tops.isdisjoint(ORDERS)


def keys_in(config: Any) -> Iterator[str]:
    """Yield the keys of a section, and of those inside it."""
    for key, value in config.items() if isinstance(config, Mapping) else []:
        yield str(key)
        yield from keys_in(value)


def near(key: str, settable: Sequence[str]) -> str:
    said = suggest(key, settable)
    return said if said.startswith(" Did") else ""


def listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


# ---- interpolations ------------------------------------------------------------------------------


def check_interpolations(config: Container, where: str) -> None:
    """Raise UserError if a value calls another resolver than a file may, such as ${oc.env:HOME}."""
    for key, value in leaves(config):
        if isinstance(value, str) and not is_harmless(value):
            raise UserError(
                f"{where}: {key} is {value}, and a file can refer to other options only, not to the environment."
                f" Type it, if you want it: {key}=…"
            )


def is_harmless(value: str) -> bool:
    """Whether a text, and what it would be once its backslashes are gone, calls none but the allowed resolvers."""
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
    """Return a configuration in which what was typed of the environment stands as what it came to."""
    for key, value in [*leaves(cfg)]:
        if isinstance(value, str) and not is_harmless(value):
            with contextlib.suppress(OmegaConfBaseException):  # validation says what is wrong
                OmegaConf.update(cfg, key, OmegaConf.select(cfg, key))
    return cfg


# ---- runs ----------------------------------------------------------------------------------------


def without_places(cfg: DictConfig) -> DictConfig:
    """Return a run's configuration in which files and folders outside the working directory can't be used.

    A run from elsewhere says what it was made of. What is read or written here, the command line says: whoever opens
    such a place gets `refuse_foreign`'s sentence.
    """
    result = cfg.copy()
    for section in ("data", "tokenizer", "objective", "logger"):
        # a tokenizer is read from the run's own copy, so what its own options name isn't
        inner = [] if not isinstance(cfg.get(section), DictConfig) else leaves(cfg[section])
        for name, value in inner:
            option = next((part for part in reversed(name.split(".")) if not part.isdigit()), name)
            if section == "tokenizer" and "." not in name:
                continue
            if isinstance(value, str) and NAMES_A_PLACE.search(option) and leads_out(value):
                place = DEFAULT_CACHE if option == "cache" else f"{FOREIGN}{value}"
                OmegaConf.update(result, f"{section}.{name}", place)
    return result


def refuse_foreign(place: str, key: str) -> None:
    """Raise UserError if a place is one that `without_places` has marked."""
    if place.startswith(FOREIGN):
        named = place.removeprefix(FOREIGN)
        raise UserError(
            f"The run names {key}={named}, which is outside of the working directory, and the run was not made by this"
            f" user on this machine, or its config.yaml has changed since. If you trust it, type {key}={named}"
        )


def mark(config: str) -> str | None:
    """Return what a run keeps to show that its config.yaml was written by this user on this machine.

    None where no key can be kept, such as without a home folder.
    """
    with contextlib.suppress(OSError, RuntimeError):
        key_file().parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(key_file(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
    return signature(config.encode())


def is_own(run: Path) -> bool:
    """Whether a run was made here, and its configuration is as it was then; where its folder is doesn't matter."""
    try:
        known = json.loads((run / "environment.json").read_bytes())["mark"]
        made = signature((run / "config.yaml").read_bytes())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return made is not None and isinstance(known, str) and hmac.compare_digest(known.encode(), made.encode())


def signature(config: bytes) -> str | None:
    try:
        key = key_file().read_bytes()
    except (OSError, RuntimeError):
        return None
    return hmac.new(key, config, hashlib.sha256).hexdigest() if len(key) == KEY_BYTES else None


def key_file() -> Path:
    return Path.home() / ".cache" / "minllm" / "key"


def leads_out(place: str) -> bool:
    """Whether a path leads out of the working directory."""
    here = Path.cwd().resolve()
    try:
        there = Path(place).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return True
    return "://" in place or not there.is_relative_to(here)


def leaves(config: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a configuration as it's written, with its key: ("model.dim", 128)."""
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
