"""From words on a command line to objects: compose a configuration, settle what it continues, build what it names.

    cfg = compose(["model/attn=mqa", "norm=post"])     the files of conf/, with two choices changed
    validate(cfg)                                      every key and value is one that the code takes
    norms = build(cfg.norm)                            the one place where a configuration becomes an object

Nothing here imports torch: what a `_target_` names is imported when it's validated or built.
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
from minllm.errors import UserError
from minllm.runs.find import find_run, initialised, named_keys, read_run, resumed, revisited
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
from minllm.schema.kinds import PLACES
from minllm.schema.options import Place, RunPlace
from minllm.schema.overrides import quoted, with_runs_data


def compose(
    overrides: Iterable[str] = (), *, config_name: str = "config", config_dir: str | Path | None = None
) -> DictConfig:
    """Return the configuration that the command line `run.py <overrides>` would run.

    Args:
        overrides: what would be typed, one string for each word: `["model/attn=mqa", "train.steps=100"]`.
        config_name: the file of conf/ to start from.
        config_dir: another folder of options, as `--config-dir` on the command line.

    Raises:
        UserError: a choice or a key doesn't exist, or a value can't be read.
    """
    import hydra

    overrides = overrides if isinstance(overrides, (str, bytes, Mapping)) else list(overrides)
    if isinstance(overrides, (str, bytes, Mapping)) or not all(isinstance(word, str) for word in overrides):
        example = overrides if isinstance(overrides, str) else "model/attn=mqa"
        raise UserError(f"compose takes a list of words: compose([{example!r}]), not {overrides!r}.")
    overrides = with_imported(with_runs_data([quoted(word) for word in overrides]))
    search = [] if config_dir is None else [f"hydra.searchpath=[file://{existing_folder(config_dir)}]"]
    with explained([] if config_dir is None else [str(config_dir)]), own_hydra(), files_checked():
        composed = hydra.compose(config_name, overrides=[*search, *overrides], return_hydra_config=True)
    return resolve_config(composed, overrides, composed.hydra.runtime)


def with_imported(words: Sequence[str]) -> list[str]:
    """Return a command line where `task=import from=<folder>` is followed by what would be typed for that model.

    What is typed already stays as it is.
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
            f"from= takes one folder, in quotes if its name is no plain word, which {folders[0]} is not."
        )
    check_value(folder, Place, "from", set())
    if "experiment" in named:
        raise UserError(
            "experiment= can't be combined with from=, since the folder says which preset it is. Leave one out."
        )
    typed = Pretrained(folder).typed(named)
    return [*words, *(word for word in typed if word.partition("=")[0].replace("/", ".") not in named)]


def resolve_config(composed: DictConfig, overrides: Sequence[str], runtime: DictConfig) -> DictConfig:
    """Return the configuration to run: what was composed, on top of the run that it continues or looks at.

    `resume=<run>`, `run=<run>` and `init_from=<run>` mean "as that run was configured", so the run's own
    configuration takes the place of the defaults, and only what `overrides` name is taken from `composed`. The choices
    made (group → option) and what was typed are written into the configuration, and packages of code count only where
    the command line names them. A new model's size, if one is asked for (`size.params=1e6`), is turned into widths.

    Args:
        composed: the configuration that Hydra composed.
        overrides: the words that it was composed of.
        runtime: its `hydra.runtime`, which knows what was chosen, and from where.

    Raises:
        UserError: the run isn't there, the overrides would make it another run, or no widths give the size.
    """
    from minllm.model.size import refuse_size, sized  # which builds models with what stands here

    cfg = OmegaConf.create({name: composed._get_node(name) for name in composed if name != "hydra"})
    refuse_file_names(runtime.choices)
    cfg.choices = {
        group: choice for group, choice in sorted(runtime.choices.items()) if not group.startswith("hydra/")
    }
    cfg.typed = [*named_folders(runtime), *(as_kept(cfg, word) for word in overrides)]
    cfg = frozen(cfg)  # a run's file may not read the environment of whoever looks at it
    named = named_keys(overrides)
    refuse_unnamed_code(cfg, named)
    refuse_several(cfg, overrides)
    refuse_unread(cfg, named)
    for key in named:
        if key.partition(".")[0] in ("choices", "typed"):
            raise UserError(
                f"{key} can't be set: minllm writes down itself what was chosen and typed. Leave it out."
            )
    if cfg.get("extensions") and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where my_idea/ stands
    if "extensions" in named:
        refuse_missing_code(cfg)
    for key, go_on in (("resume", resumed), ("run", revisited), ("init_from", initialised)):
        if key in cfg:
            check_value(read(cfg, key, key), RunPlace | None, key, set())
        if cfg.get(key):
            cfg[key] = str(find_run(cfg[key]))
            refuse_size(cfg, key, named)
            cfg = go_on(cfg, read_run(cfg[key], cfg.extensions), named)
            break  # a resumed run may have begun from another's weights, and has its own now
    else:
        cfg = sized(cfg)
    OmegaConf.set_struct(cfg, True)
    return cfg


def refuse_unread(cfg: DictConfig, named: Iterable[str]) -> None:
    """Refuse what was typed for a section that the task doesn't read (`minllm.schema.options.reads`)."""
    target = OmegaConf.select(cfg, "task._target_", throw_on_missing=False, throw_on_resolution_failure=False)
    if not isinstance(target, str):
        return  # which validating refuses
    task = locate(target, allowed_packages(cfg), "task", PLACES["task"])
    if (keys := getattr(task, "reads", None)) is None:
        return
    own = [f"{section_of(option)}.{key}".lstrip(".") for key, option in options_of(task).items()]
    read_of_it = [f"{key}." for key in (*keys, *own, "task", "extensions", "experiment")]
    for key in sorted(named):
        # a choice of files sets all of a section
        if not any(f"{key}.".startswith(one) or one.startswith(f"{key}.") for one in read_of_it):
            typed = key.replace(".", "/") if key.replace(".", "/") in cfg.choices else key
            listed = ", ".join(dict.fromkeys([*keys, *own]))
            raise UserError(
                f"{typed} would do nothing: task={cfg.choices.task} reads only {listed}. Leave it out."
            )


def refuse_several(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a list where one option of a group is chosen: Hydra would merge the files, and note no choice."""
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
    """Refuse a choice by the name of its file, because it would count as another arm."""
    for group, choice in choices.items():
        if str(choice).endswith((".yaml", ".yml")):
            raise UserError(
                f"{group}={choice} is the name of a file. Type {group}={str(choice).rpartition('.')[0]}"
            )


def named_folders(runtime: DictConfig) -> list[str]:
    """Return the flags that name further folders of options, without which nothing of theirs can be chosen."""
    folders = [one.path for one in runtime.config_sources if one.provider == "command-line"]
    return [f"--config-dir={os.path.relpath(folder)}" for folder in folders]


def as_kept(cfg: DictConfig, word: str) -> str:
    """Return a word as a configuration may hold it: what refers to other values is replaced by what it came to."""
    if "${" not in word:
        return word
    key = word.partition("=")[0]
    try:
        value = OmegaConf.select(cfg, key.lstrip("+"))
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return key  # validation says what is wrong
    return f"{key}={json.dumps(value)}"


def refuse_unnamed_code(cfg: DictConfig, named: Container[str]) -> None:
    """Raise UserError if packages may give code that the command line doesn't name."""
    if cfg.get("extensions") and "extensions" not in named:
        listed = ",".join(cfg.extensions)
        raise UserError(
            f"A file can't allow itself to run code. If you trust it, add 'extensions=[{listed}]'."
        )


def refuse_missing_code(cfg: DictConfig) -> None:
    """Refuse packages that aren't there, because nothing of them would be used."""
    for name in allowed_packages(cfg) - {"minllm"}:
        if not name.isidentifier():
            raise UserError(
                f"extensions takes names of packages, such as my_idea for the folder my_idea/, not {name!r}."
            )
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise UserError(
                f"There is no package '{name}' for extensions=[{name}] in {os.getcwd()}, and none is installed."
            )


def perform(cfg: DictConfig, run_dir: Path) -> Any:
    """Do the configuration's task, and return what it returns.

    A task is a function `task(cfg, run_dir, *, <its own keys>)`: they stand at the root, or in the section that they
    are marked with (`minllm.schema.options.In`). A resumed run goes on in its own folder.
    """
    validate(cfg)
    task = locate(cfg.task._target_, allowed_packages(cfg), "task", PLACES["task"])
    own = {}
    for key, option in options_of(task).items():
        section = section_of(option)
        place = cfg[section] if section else cfg
        if key in place:
            own[option.name] = plain(place[key], option.annotation, f"{section}.{key}".lstrip("."))
    return task(cfg, Path(cfg.get("resume") or run_dir), **own)


@contextlib.contextmanager
def own_hydra() -> Iterator[None]:
    """A Hydra of our own: composing works again and again, in a notebook, and inside a running job."""
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
        raise UserError(f"There is no folder '{folder}' to take more options from.")
    return Path(folder).resolve()
