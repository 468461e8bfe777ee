"""Turns errors of Hydra, OmegaConf and the file system into short messages for the user."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException, SearchPathException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from minllm.config.flags import FLAGS
from minllm.errors import UserError, disk_error, disk_sentence, first_line, suggest
from minllm.schema.groups import FOLDERS, MAPPING, Option, find_groups
from minllm.schema.overrides import key_of, line


@contextlib.contextmanager
def explained(folders: Sequence[str] = ()) -> Iterator[None]:
    """Convert errors raised while a configuration is composed to `UserError`.

    Args:
        folders: folders of options besides conf/.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_sentence(error, folders)) from error
    except FileNotFoundError as error:  # such as a run folder under /proc
        raise UserError(disk_sentence(error)) from error
    except OSError as error:
        sentence = disk_error(error) or not_mapping(folders)
        if sentence is None:
            raise
        raise sentence from error
    except RecursionError as error:
        if "full_key" not in str(error):  # not raised by OmegaConf
            raise
        raise UserError("A configuration file is nested too deeply to be read.") from error
    except YAMLError as error:
        raise UserError(yaml_sentence(error)) from error
    except UnicodeDecodeError as error:
        if (file := not_text(folders)) is None:
            raise
        raise UserError(f"{file} isn't UTF-8 text: {first_line(error)}.") from error
    except ValueError as error:
        message = str(error)
        if message.startswith("Config group override"):  # such as logger=null
            sentence = "A group can't be null. Choose one of its options; --help lists them."
        elif "@package" in message:
            sentence = f"Invalid @package line: {first_line(error)}. Use # @package _global_."
        else:
            raise
        raise UserError(sentence) from error


def yaml_sentence(error: YAMLError) -> str:
    """Return where a configuration file isn't valid YAML, and why."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "A configuration file"
    cure = " Indent with spaces." if "tab character" in str(problem) else ""
    return f"{where}: not valid YAML: {first_line(problem or error)}.{cure}"


def not_text(folders: Sequence[str]) -> Path | None:
    """Return the first file in `folders` that isn't UTF-8."""
    for file in (
        file for folder in folders for file in sorted(Path(folder).rglob("*.yaml")) if file.is_file()
    ):
        try:
            file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return file
    return None


def not_mapping(folders: Sequence[str]) -> UserError | None:
    """Return the error for the first file in `folders` that isn't a mapping, such as a single number."""
    for file in (file for folder in folders for file in sorted(Path(folder).rglob("*.yaml"))):
        try:
            OmegaConf.load(file)
        except OSError:
            return UserError(f"{file} {MAPPING}")
        except (YAMLError, UnicodeDecodeError, OmegaConfBaseException):
            continue
    return None


def composition_sentence(error: Exception, folders: Sequence[str]) -> str:
    """Return what is wrong with the command line, and what to type instead."""
    message = str(error) or str(error.__cause__ or "") or type(error).__name__
    if isinstance(error, OverrideParseException) and (
        called := re.search(r"(\w+) while evaluating '(.+?)': (.+)", message)
    ):
        return f"Can't parse '{error.override}': {called[2]}: {first_line(called[3])}."
    if isinstance(error, OverrideParseException) and (meant := retyped(error.override, find_groups(folders))):
        return f"Can't parse '{error.override}'. Did you mean {meant}?"
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return f"Can't parse '{error.override}'. {near_word(error.override, find_groups(folders))}"
    if isinstance(error, OverrideParseException):
        return f"Can't parse '{error.override}'. Type key=value, with brackets in quotes: 'prompts=[Once upon a time]'."
    if isinstance(error, SearchPathException):
        return f"{first_line(message)}."
    if isinstance(error.__cause__, YAMLError):
        return yaml_sentence(error.__cause__)
    if wrong_file := re.search(r"In '(.+?)': ConfigTypeError raised", message):
        return f"{wrong_file[1]}.yaml {MAPPING}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return missing_option(error.missing_cfg_file, error.options, message, find_groups(folders))
    if several := re.search(r"Ambiguous value for argument '(.+)'", message):
        key, _, values = several[1].partition("=")
        parts = [part.strip("'\" ") for part in values.split(",")]
        if settings := [part for part in parts if re.fullmatch(r"[\w./@+~]+=.*", part)]:
            return f"{several[1]} has several values. To set {key_of(settings[0])} too, separate overrides with spaces."
        if re.fullmatch(r"\d{1,3}(,\d{3})+", values):
            return f"{several[1]} has several values. For one number, type {key}={values.replace(',', '')}"
        as_list = "" if "/" in key else f", or type '{key}=[{values}]' for a list"
        as_text = f" For one text, type {line(key, values)}" if " " in values else ""
        return f"{several[1]} has several values. Add -m to run each{as_list}.{as_text}"
    if sweep := re.search(r"Sweep parameters '(.+)' requires", message):
        return f"{sweep[1]} has several values. Add -m to run each."
    if message.startswith(("Could not override ''", "Could not delete ''")):
        return "An override needs a key before the =: key=value."
    if twice := re.search(r"Multiple values for (\S+?)\. |not supported: '\+\+(.+?)=", message):
        key = twice[1] or twice[2]
        return f"{key} already has an option. Choose another one without the +: {key}=<option>"
    if unknown := re.search(r"Could not override '(.+?)'", message):
        value = re.search(r"use \+[^=]+=(.*)", message)
        return unknown_key(unknown[1], value[1] if value else "<option>", error.__cause__, folders)
    if merging := re.search(r"Error merging override (.+)", message):
        return f"Can't set {merging[1]}: {first_line(error.__cause__)}."
    full_key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None)
    return (f"{full_key}: " if full_key else "") + first_line(message) + "."


TYPOGRAPHIC = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
    | dict.fromkeys("\u201c\u201d\u201e", '"')
    | dict.fromkeys("\u2018\u2019\u201a", "'")
    | {"\u00a0": " "}
)  # typographic characters of web pages and word processors, for - " ' and space


def retyped(word: str, groups: Mapping[str, Mapping[str, Option]]) -> str | None:
    """Return the likely intention behind an override that can't be parsed: a flag with another dash, or an option."""
    plain = word.translate(TYPOGRAPHIC).strip("\"' ")
    longs = {short: flag for flag, (short, _) in FLAGS.items() if short}
    for flag in (plain, f"-{plain}"):
        if flag in FLAGS or flag in longs:
            return flag
    choice = re.fullmatch(r"/*(.+?)[/\s]*(?:=+|:|/|\s)\s*([\w.]+?),?", plain.replace("\\", "/"))
    if choice and choice[2] in groups.get(re.sub("/+", "/", choice[1]), {}):
        return f"{re.sub('/+', '/', choice[1])}={choice[2]}"
    return plain if plain != word and re.fullmatch(r"[\w./@+~-]+=.+", plain) else None


def near_word(word: str, groups: Mapping[str, Mapping[str, Option]]) -> str:
    """Suggest what a word without = may have meant: an option of a group, a group, or a flag."""
    if f"--{word}" in FLAGS:
        return f"Did you mean --{word}?"
    if choices := [f"{group}={word}" for group, options in groups.items() if word in options]:
        return f"Did you mean {' or '.join(choices[:3])}?"
    if word in groups:
        return f"Did you mean {word}=<option>? --help lists them."
    return "Type key=value, with brackets in quotes: 'prompts=[Once upon a time]'."


def missing_option(
    path: str, options: Sequence[str], message: str, groups: Mapping[str, Mapping[str, Option]]
) -> str:
    group, _, option = path.rpartition("/")
    if group in FOLDERS:  # of another group's options: data=probe/mqar
        group, _, folder = group.rpartition("/")
        option = f"{folder}/{option}"
        options = [name for name in groups[group] if name.startswith(f"{folder}/")]
    asker = re.match(r"In '(.+?)'", message)
    asked_by = f", which {asker[1]} chooses" if asker and asker[1] not in ("config", "sweep") else ""
    return f"There is no {group}={option}{asked_by}.{suggest(option, options)}"


def unknown_key(key: str, value: str, cause: BaseException | None, folders: Sequence[str]) -> str:
    """Return the message for an unknown key, with a similar group, the tasks that have the key, or a similar key."""
    groups = find_groups(folders)
    if key in groups and "/" not in key:  # of some tasks only, such as grader
        owners = [
            f"{group}={name}"
            for group, options in groups.items()
            for name, option in options.items()
            if key in option.groups
        ]
        return f"{key} is an option of {' and '.join(owners)} only. Leave it out, or choose one of them."
    if key in groups:  # options of an option, such as model/attn/mask
        group, _, name = key.rpartition("/")
        return f"The chosen option of {group} has no {name}. Leave out {key}, or choose another {group}."
    if key in FOLDERS:  # data/probe=mqar
        group, _, folder = key.rpartition("/")
        return f"'{key}' is a folder of options and not a group. Did you mean {group}={folder}/{value}?"
    if "@" in key and key.partition("@")[0] in groups:
        return f"{key} isn't among the defaults. To add it, type +{key}={value}"
    if "/" in key:
        return f"There is no group '{key}'.{suggest(key, groups)}"
    for group in groups:
        if key == group.rpartition("/")[2]:
            return f"There is no '{key}'. Did you mean {group}={value}?"
    tasks = [task for task, option in groups.get("task", {}).items() if key in option.keys]
    if tasks:
        return f"This task has no option '{key}'. Add task={' or task='.join(tasks)}."
    parent, _, name = key.rpartition(".")
    siblings = [str(sibling) for sibling in getattr(cause, "parent_node", None) or []]
    if elsewhere := paths_of(key, getattr(cause, "parent_node", None)):
        return f"There is no option '{key}'. Did you mean {' or '.join(f'{path}={value}' for path in elsewhere)}?"
    where = f"{parent} has no option" if parent else "There is no option"
    group = parent.replace(".", "/")
    if having := [choice for choice, option in groups.get(group, {}).items() if name in option.keys]:
        owners = " and ".join(f"{group}={choice}" for choice in having[:3])
        root = getattr(cause, "parent_node", None)
        is_of_a_run = isinstance(root, DictConfig) and "run" in list(root._get_root())
        has, these = ("has", "it") if len(having) == 1 else ("have", "one of these")
        of_run = f" If the run was trained with {these}, type +{key}={value}" if is_of_a_run else ""
        return f"{where} '{name}'; {owners} {has} it.{of_run}"
    return f"{where} '{name}'.{suggest(name, [key for key in siblings if key not in ('hydra', '_target_')])}"


def paths_of(key: str, root: object, above: str = "") -> list[str]:
    """Return the paths of nested options that end with `key`: optim.lr for lr."""
    if not isinstance(root, DictConfig) or root._is_missing() or root._is_none():
        return []
    found = []
    for name in root:
        path = f"{above}.{name}" if above else str(name)
        if path == "hydra":
            continue
        if path.endswith(f".{key}"):
            found.append(path)
        found += paths_of(key, root._get_node(name), path)
    return found
