"""Compose a configuration from overrides, merge it with the run that it continues, and run its task.

    cfg = compose(["model/attn=mqa", "norm=post"])     the files of conf/ with two options changed
    validate(cfg)                                      check every key and value against the code
    norms = build(cfg.norm)                            instantiate a section

This module doesn't import torch: what a `_target_` names is imported when it is validated or built.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minllm.config.explain import explained
from minllm.config.unasked import refuse_unasked
from minllm.errors import UserError
from minllm.runs.find import (
    config_for_task,
    config_to_initialise,
    config_to_resume,
    find_run,
    named_keys,
    read_run,
)
from minllm.schema.building import plain
from minllm.schema.checking import (
    allowed_packages,
    check_value,
    locate,
    options_of,
    read,
    section_of,
    validate,
)
from minllm.schema.foreign import files_checked, frozen
from minllm.schema.groups import CONF
from minllm.schema.kinds import SECTION_KINDS
from minllm.schema.options import Place, RunPlace
from minllm.schema.overrides import quoted, with_runs_data


def compose(
    overrides: Iterable[str] = (), *, config_name: str = "config", config_dir: str | Path | None = None
) -> DictConfig:
    """Return the configuration that the command line `run.py <overrides>` would run.

    Args:
        overrides: what would be typed, one string per override: `["model/attn=mqa", "train.steps=100"]`.
        config_name: the file of conf/ to start from.
        config_dir: a further folder of options, as `--config-dir` on the command line.

    Raises:
        UserError: an option or a key doesn't exist, or a value can't be parsed.
    """
    import hydra

    overrides = overrides if isinstance(overrides, (str, bytes, Mapping)) else list(overrides)
    if isinstance(overrides, (str, bytes, Mapping)) or not all(isinstance(word, str) for word in overrides):
        example = overrides if isinstance(overrides, str) else "model/attn=mqa"
        raise UserError(
            f"compose takes a list of overrides, such as compose([{example!r}]), not {overrides!r}."
        )
    overrides = with_imported(with_runs_data([quoted(word) for word in overrides]))
    search = [] if config_dir is None else [f"hydra.searchpath=[file://{existing_folder(config_dir)}]"]
    with explained([] if config_dir is None else [str(config_dir)]), own_hydra(), files_checked():
        composed = hydra.compose(config_name, overrides=[*search, *overrides], return_hydra_config=True)
    return resolve_config(composed, overrides, composed.hydra.runtime)


def with_imported(words: Sequence[str]) -> list[str]:
    """Add to `task=import from=<folder>` the overrides that describe the model in that folder.

    Overrides that are given already take precedence.
    """
    folders = [word for word in words if word.startswith("from=")]
    if not folders or "task=import" not in words:
        return list(words)
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from minllm.convert.folder import Pretrained

    with explained():
        named = named_keys(word for word in words if "=" in word and not word.startswith("-"))
        folder = OverridesParser.create().parse_overrides(folders[:1])[0].value()
    if not isinstance(folder, (str, int, float, bool)):
        raise UserError(
            f"{folders[0]} is not a single folder. Type from=<folder>, in quotes if its name has special characters."
        )
    check_value(folder, Place, "from", set())
    if "experiment" in named:
        raise UserError(
            "experiment= can't be combined with from=, which chooses the preset itself. Leave one of them out."
        )
    typed = Pretrained(folder).overrides(named)
    return [*words, *(word for word in typed if word.partition("=")[0].replace("/", ".") not in named)]


def resolve_config(composed: DictConfig, overrides: Sequence[str], runtime: DictConfig) -> DictConfig:
    """Return the configuration to run: what was composed, merged with the run that it continues or loads.

    With `resume=<run>`, `run=<run>` or `init_from=<run>`, the run's own configuration replaces the defaults, and only
    the keys in `overrides` are taken from `composed`. The chosen options (group → option) and the overrides are stored
    in the configuration. Packages in `extensions` count only if the command line names them. If a size is requested for
    a new model (`size.params=1e6`), it is turned into widths.

    Args:
        composed: the configuration from Hydra.
        overrides: the overrides that it was composed from.
        runtime: its `hydra.runtime`, with the chosen options and their sources.

    Raises:
        UserError: the run doesn't exist, the overrides contradict it, or no widths give the requested size.
    """
    from minllm.model.size import refuse_size, sized  # here, because it imports this module

    cfg = OmegaConf.create({name: composed._get_node(name) for name in composed if name != "hydra"})
    refuse_file_names(runtime.choices)
    cfg.choices = {
        group: choice for group, choice in sorted(runtime.choices.items()) if not group.startswith("hydra/")
    }
    cfg.typed = [*named_folders(runtime), *(as_kept(cfg, word) for word in overrides)]
    cfg = frozen(cfg)  # a run's config.yaml must not read the environment of whoever opens it
    named = named_keys(overrides)
    refuse_unnamed_code(cfg, named)
    refuse_several(cfg, overrides)
    refuse_unread(cfg, named)
    refuse_unasked(cfg, named)
    for key in named:
        if key.partition(".")[0] in ("choices", "typed"):
            raise UserError(
                f"{key} can't be set: minllm records the options and overrides itself. Leave it out."
            )
    if cfg.get("extensions") and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where my_idea/ is
    if "extensions" in named:
        refuse_missing_code(cfg)
    if "branch_from" in cfg:
        check_value(read(cfg, "branch_from", "branch_from"), RunPlace | None, "branch_from", set())
    if cfg.get("branch_from"):
        # a run, or a folder of runs, of which one is chosen by its seed when this run begins
        place = find_run("latest") if cfg.branch_from == "latest" else Path(str(cfg.branch_from)).expanduser()
        cfg.branch_from = str(place.resolve())
    for key, merge in (
        ("resume", config_to_resume),
        ("run", config_for_task),
        ("init_from", config_to_initialise),
    ):
        if key in cfg:
            check_value(read(cfg, key, key), RunPlace | None, key, set())
        if cfg.get(key):
            cfg[key] = str(find_run(cfg[key]))
            refuse_size(cfg, key, named)
            cfg = merge(cfg, read_run(cfg[key], cfg.extensions), named)
            break  # a resumed run may have an init_from of its own, whose weights it no longer needs
    else:
        cfg = sized(cfg)
    OmegaConf.set_struct(cfg, True)
    return cfg


def refuse_unread(cfg: DictConfig, named: Iterable[str]) -> None:
    """Reject overrides of sections that the task doesn't read (`minllm.schema.options.reads`)."""
    target = OmegaConf.select(cfg, "task._target_", throw_on_missing=False, throw_on_resolution_failure=False)
    if not isinstance(target, str):
        return  # validate rejects it
    task = locate(target, allowed_packages(cfg), "task", SECTION_KINDS["task"])
    if (keys := getattr(task, "reads", None)) is None:
        return
    own = [f"{section_of(option)}.{key}".lstrip(".") for key, option in options_of(task).items()]
    prefixes = [f"{key}." for key in (*keys, *own, "task", "extensions", "experiment")]
    for key in sorted(named):
        # choosing an option of a group sets the whole section
        if not any(f"{key}.".startswith(prefix) or prefix.startswith(f"{key}.") for prefix in prefixes):
            typed = key.replace(".", "/") if key.replace(".", "/") in cfg.choices else key
            listed = ", ".join(dict.fromkeys([*keys, *own]))
            raise UserError(
                f"{typed} would do nothing: task={cfg.choices.task} reads only {listed}. Leave it out."
            )


def refuse_several(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Reject a list of options for a group: Hydra would merge the files and record no choice."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group, options = override.key_or_group, override.value()
        if not isinstance(options, list) or group.startswith("hydra"):
            continue
        if "/" in group or not OmegaConf.is_list(OmegaConf.select(cfg, group, throw_on_missing=False)):
            several = ",".join(map(str, options))
            cure = (
                f"-m {group}={several} runs each of them" if len(options) > 1 else f"type {group}={several}"
            )
            raise UserError(f"{group} takes one option, not a list: {cure if options else 'name one'}.")


def refuse_file_names(choices: Mapping[str, Any]) -> None:
    """Reject an option with its file extension, because it would count as a different arm."""
    for group, choice in choices.items():
        if str(choice).endswith((".yaml", ".yml")):
            raise UserError(f"{group}={choice} is a file name. Type {group}={str(choice).rpartition('.')[0]}")


def named_folders(runtime: DictConfig) -> list[str]:
    """Return the --config-dir flags, without which the options in those folders can't be chosen again."""
    folders = [source.path for source in runtime.config_sources if source.provider == "command-line"]
    return [f"--config-dir={os.path.relpath(folder)}" for folder in folders]


def as_kept(cfg: DictConfig, word: str) -> str:
    """Return an override with interpolations replaced by their values, as it is stored in the configuration."""
    if "${" not in word:
        return word
    key = word.partition("=")[0]
    try:
        value = OmegaConf.select(cfg, key.lstrip("+"))
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return key  # validate reports it
    return f"{key}={json.dumps(value)}"


def refuse_unnamed_code(cfg: DictConfig, named: Container[str]) -> None:
    """Reject `extensions` that a file sets and the command line doesn't."""
    if cfg.get("extensions") and "extensions" not in named:
        listed = ",".join(cfg.extensions)
        raise UserError(
            f"A file can't set extensions, which run code. If you trust it, add 'extensions=[{listed}]'."
        )


def refuse_missing_code(cfg: DictConfig) -> None:
    """Reject packages in `extensions` that don't exist."""
    for name in allowed_packages(cfg) - {"minllm"}:
        if not name.isidentifier():
            raise UserError(
                f"extensions takes package names, such as my_idea for the folder my_idea/, not {name!r}."
            )
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise UserError(
                f"extensions=[{name}]: there is no package '{name}' in {os.getcwd()} or installed."
            )


def perform(cfg: DictConfig, run_dir: Path) -> Any:
    """Run the task of a configuration and return its result.

    A task is a function `task(cfg, run_dir, *, <options>)`. Its options are keys at the root, or of the section that
    they are marked with (`minllm.schema.options.In`). A resumed run continues in its own folder.
    """
    validate(cfg)
    task = locate(cfg.task._target_, allowed_packages(cfg), "task", SECTION_KINDS["task"])
    own = {}
    for key, option in options_of(task).items():
        section = section_of(option)
        place = cfg[section] if section else cfg
        if key in place:
            own[option.name] = plain(place[key], option.annotation, f"{section}.{key}".lstrip("."))
    return task(cfg, Path(cfg.get("resume") or run_dir), **own)


@contextlib.contextmanager
def own_hydra() -> Iterator[None]:
    """Initialize Hydra for one composition, so that compose can be called repeatedly and inside a running job."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), job_name="minllm"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def existing_folder(folder: str | Path) -> Path:
    if not Path(folder).is_dir():
        raise UserError(f"config_dir: there is no folder '{folder}'.")
    return Path(folder).resolve()
