"""Puts into one sentence what Hydra, OmegaConf and the file system say to developers at length."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException, SearchPathException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from minllm.errors import UserError, first_line, suggest
from minllm.help import FLAGS, Option, find_groups
from minllm.words import key_of, line

# what stops a file from being written or a folder from being made, whoever tries
DISK_TROUBLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EIO,
}


MAPPING = "must be a mapping of keys, such as 'dim: 64'."
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def explained(folders: Sequence[str] = ()) -> Iterator[None]:
    """Raise what goes wrong inside, while a configuration is composed, as a `UserError`.

    Args:
        folders: more folders of options, besides conf/.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_sentence(error, folders)) from error
    except FileNotFoundError as error:  # such as a folder under /proc, where none can be made
        raise UserError(disk_sentence(error)) from error
    except OSError as error:
        sentence = disk_error(error) or not_mapping(folders)
        if sentence is None:
            raise
        raise sentence from error
    except RecursionError as error:
        if "full_key" not in str(error):  # which OmegaConf adds
            raise
        raise UserError("A file of options is nested too deeply to be read.") from error
    except YAMLError as error:
        raise UserError(yaml_sentence(error)) from error
    except UnicodeDecodeError as error:
        if (file := not_text(folders)) is None:
            raise
        raise UserError(f"{file} isn't UTF-8 text: {first_line(error)}.") from error
    except ValueError as error:
        message = str(error)
        if message.startswith("Config group override"):  # such as logger=null
            sentence = "A group can't be null: choose one of its options, which --help lists."
        elif "@package" in message:
            sentence = (
                f"A file of options has a wrong first line: {first_line(error)}. Use # @package _global_."
            )
        else:
            raise
        raise UserError(sentence) from error


def yaml_sentence(error: YAMLError) -> str:
    """Say where a file of options is no YAML, and why."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "A file of options"
    cure = " Indent with spaces." if "tab character" in str(problem) else ""
    return f"{where}: not valid YAML: {first_line(problem or error)}.{cure}"


def not_text(folders: Sequence[str]) -> Path | None:
    """Return the file in folders of options that isn't UTF-8."""
    for file in (
        file for folder in folders for file in sorted(Path(folder).rglob("*.yaml")) if file.is_file()
    ):
        try:
            file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return file
    return None


def not_mapping(folders: Sequence[str]) -> UserError | None:
    """Return the sentence for a file in folders of options that holds a single number or the like."""
    for file in (file for folder in folders for file in sorted(Path(folder).rglob("*.yaml"))):
        try:
            OmegaConf.load(file)
        except OSError:
            return UserError(f"{file} {MAPPING}")
        except (YAMLError, UnicodeDecodeError, OmegaConfBaseException):
            continue
    return None


def disk_error(error: BaseException) -> UserError | None:
    """Return the sentence for a full disk, or a folder that can't be found or written to; None for other trouble."""
    if isinstance(error, RuntimeError) and str(error).startswith("Could not determine home directory"):
        return UserError(
            "There is no such user, or no HOME, for a path that begins with ~. Write out the path."
        )
    if not isinstance(error, OSError) or error.errno not in DISK_TROUBLE:
        return None
    return UserError(disk_sentence(error))


def memory_error(error: BaseException) -> UserError | None:
    """Return the sentence for memory that doesn't even suffice to load the libraries; None for other trouble."""
    loading = isinstance(error, ImportError) and "map segment" in str(error)
    if (
        loading
        or isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    ):
        return UserError(
            "Memory ran out. End other programs that hold memory, or raise this shell's limit (ulimit -v)."
        )
    return None


def disk_sentence(error: OSError) -> str:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return f"The disk is full{where}. Make room, or write elsewhere with hydra.run.dir=<folder>."
    return f"Can't write{where}: {error.strerror}. Choose another place with hydra.run.dir=<folder>."


def is_full(error: BaseException | None) -> bool:
    """Say whether `error`, or one that it came from, means that there's no room left on the disk."""
    if error is None:
        return False
    return (isinstance(error, OSError) and error.errno in FULL) or is_full(
        error.__cause__ or error.__context__
    )


def composition_sentence(error: Exception, folders: Sequence[str]) -> str:
    """Say what's wrong with the command line, and what to type instead."""
    message = str(error) or str(error.__cause__ or "") or type(error).__name__
    if isinstance(error, OverrideParseException) and (
        called := re.search(r"(\w+) while evaluating '(.+?)': (.+)", message)
    ):
        return f"Can't read '{error.override}': {called[2]}: {first_line(called[3])}."
    if isinstance(error, OverrideParseException) and (meant := retyped(error.override, find_groups(folders))):
        return f"Can't read '{error.override}'. Did you mean {meant}?"
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return f"Can't read '{error.override}'. {near_word(error.override, find_groups(folders))}"
    if isinstance(error, OverrideParseException):
        return f"Can't read '{error.override}'. A setting is key=value; quote brackets: 'prompts=[Once upon a time]'."
    if isinstance(error, SearchPathException):
        return f"{first_line(message)}."
    if isinstance(error.__cause__, YAMLError):
        return yaml_sentence(error.__cause__)
    if wrong_file := re.search(r"In '(.+?)': ConfigTypeError raised", message):
        return f"{wrong_file[1]}.yaml {MAPPING}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return missing_option(error.missing_cfg_file, error.options, message)
    if several := re.search(r"Ambiguous value for argument '(.+)'", message):
        key, _, values = several[1].partition("=")
        parts = [part.strip("'\" ") for part in values.split(",")]
        if settings := [part for part in parts if re.fullmatch(r"[\w./@+~]+=.*", part)]:
            return f"{several[1]} is several values. To set {key_of(settings[0])} too, separate settings with spaces."
        if re.fullmatch(r"\d{1,3}(,\d{3})+", values):
            return f"{several[1]} is several values. For one number, type {key}={values.replace(',', '')}"
        as_list = "" if "/" in key else f", or type '{key}=[{values}]' for a list"
        as_text = f" For one text, type {line(key, values)}" if " " in values else ""
        return f"{several[1]} is several values. Add -m to run each{as_list}.{as_text}"
    if sweep := re.search(r"Sweep parameters '(.+)' requires", message):
        return f"{sweep[1]} is several values. Add -m to run each."
    if message.startswith(("Could not override ''", "Could not delete ''")):
        return "A setting needs a key before its =: key=value."
    if twice := re.search(r"Multiple values for (\S+?)\. |not supported: '\+\+(.+?)=", message):
        key = twice[1] or twice[2]
        return f"{key} is chosen already. Choose another option without a +: {key}=<option>"
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
)  # what web pages and word processors put for - " ' and the space


def retyped(word: str, groups: Mapping[str, Mapping[str, Option]]) -> str | None:
    """Return what a word that can't be read may have been meant to be: a flag with another dash, or a choice."""
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
    """Say what a word without = may have meant: an option of a group, a group, or a flag."""
    if f"--{word}" in FLAGS:
        return f"Did you mean --{word}?"
    if choices := [f"{group}={word}" for group, options in groups.items() if word in options]:
        return f"Did you mean {' or '.join(choices[:3])}?"
    if word in groups:
        return f"Did you mean {word}=<option>? --help lists them."
    return "A setting is key=value; quote brackets: 'prompts=[Once upon a time]'."


def missing_option(path: str, options: Sequence[str], message: str) -> str:
    group, _, option = path.rpartition("/")
    asker = re.match(r"In '(.+?)'", message)
    asked_by = f", which {asker[1]} asks for" if asker and asker[1] not in ("config", "sweep") else ""
    return f"There is no {group}={option}{asked_by}.{suggest(option, options)}"


def unknown_key(key: str, value: str, cause: BaseException | None, folders: Sequence[str]) -> str:
    """Say what's near a key that nothing takes: a group of that name, another task's key, or one beside it."""
    groups = find_groups(folders)
    if key in groups:  # options of an option, such as model/attn/mask
        group, _, name = key.rpartition("/")
        return (
            f"What you chose for {group} has no {name} to choose: leave out {key}, or choose another {group}."
        )
    if "/" in key:
        return f"There is no group '{key}'.{suggest(key, groups)}"
    for group in groups:
        if key == group.rpartition("/")[2]:
            return f"There is no '{key}'. Did you mean {group}={value}?"
    tasks = [task for task, option in groups.get("task", {}).items() if key in option.keys]
    if tasks:
        return f"This task takes no '{key}'. Add task={' or task='.join(tasks)}."
    parent, _, name = key.rpartition(".")
    beside = [str(one) for one in getattr(cause, "parent_node", None) or []]
    if elsewhere := places_of(key, getattr(cause, "parent_node", None)):
        return (
            f"There is no option '{key}'. Did you mean {' or '.join(f'{one}={value}' for one in elsewhere)}?"
        )
    where = f"{parent} has no option" if parent else "There is no option"
    group = parent.replace(".", "/")
    if having := [choice for choice, option in groups.get(group, {}).items() if name in option.keys]:
        owners = " and ".join(f"{group}={choice}" for choice in having[:3])
        return f"{where} '{name}'; {owners} {'has' if len(having) == 1 else 'have'} it."
    return f"{where} '{name}'.{suggest(name, [one for one in beside if one not in ('hydra', '_target_')])}"


def places_of(key: str, root: object, above: str = "") -> list[str]:
    """Return the options further inside a configuration whose names end as `key` does: optim.lr for lr."""
    if not isinstance(root, DictConfig) or root._is_missing() or root._is_none():
        return []
    found = []
    for name in root:
        path = f"{above}.{name}" if above else str(name)
        if path == "hydra":
            continue
        if path.endswith(f".{key}"):
            found.append(path)
        found += places_of(key, root._get_node(name), path)
    return found
