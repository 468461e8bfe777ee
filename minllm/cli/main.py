"""The parts that run.py and sweep.py share: reading the command line, calling Hydra, and reporting errors."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from minllm.config.flags import FLAGS
from minllm.errors import UserError, disk_error, neighbour, printable, suggest
from minllm.page.terminal import BROKEN_PIPE, answer, escape_unencodable, exit_code, json_output
from minllm.schema.groups import CONF
from minllm.schema.overrides import UNSET, comma_note, key_of, quoted, with_runs_data
from minllm.training.launched import is_first_to_print

if TYPE_CHECKING:
    from omegaconf import DictConfig

JSON = "--json"

OF_HYDRA = [
    "minllm.grid.multirun.GridSweeper",
    "minllm.sweep.plugin.PruningSweeper",
    "minllm.sweep.plugin.Processes",
]
"""The classes of minllm that Hydra may instantiate."""

VALUES: dict[str, tuple[str, ...]] = {  # of flags that take a value; () allows any
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath", "aliases"),
    "--package": (),
    "--config-dir": (),
    "--config-path": (),
    "--config-name": (),
    "--shell-completion": tuple(
        f"{act}={shell}" for act in ("install", "uninstall", "query") for shell in ("bash", "fish", "zsh")
    ),
}
NO_ANSWER = ("--help", "-h", "--cfg", "-c", "--info", "-i")
MODES = ("--run", "--multirun", "--cfg", "--info", "--shell-completion")  # mutually exclusive


def run_command(
    args: Sequence[str], help_text: Callable[[Sequence[str]], str], act: Callable[[], int]
) -> int:
    """Execute the command line and return the exit code: 0, 2 after a user's mistake, 1 after a bug.

    With --json, standard output gets one line of JSON and nothing else, after a mistake too.

    Args:
        args: the command line. Overrides for an imported model are added, and values that Hydra needs quoted are
            quoted.
        help_text: returns the text of --help, given the folders of options.
        act: does the rest; it reads `sys.argv`, as Hydra does.
    """
    escape_unencodable()
    if JSON not in args:
        return _run_command(args, help_text, act)
    with json_output():
        return _run_command(args, help_text, act)


def _run_command(
    args: Sequence[str], help_text: Callable[[Sequence[str]], str], act: Callable[[], int]
) -> int:
    try:
        check_working_directory()
        check_encoding(args)
        check_flags(args)
        args = without_json(args)
        args = expand_home(args)
        check_folders(args)
        if {"--help", "-h"} & set(args):
            print(printable(help_text(config_dirs(args))), flush=True)
            return 0
        for note in filter(None, map(comma_note, args)):
            print(printable(note), file=sys.stderr)
        args = with_runs_data([quoted(arg) for arg in args])
        if any(arg.startswith("from=") for arg in args):
            from minllm.config.compose import with_imported

            args = with_imported(args)
        sys.argv[1:] = args  # Hydra reads this
        return act()
    except UserError as error:
        return refused(str(error))
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (RuntimeError, OSError) as error:
        if (sentence := disk_error(error)) is None:
            raise
        return refused(str(sentence))
    except SystemExit as end:  # Hydra exits with 1 if --package doesn't exist
        return 2 if end.code == 1 and "--cfg" in args else exit_code(end)
    except KeyboardInterrupt:
        return 130


def refused(sentence: str) -> int:
    """Print why a command can't be executed, and return its exit code."""
    if is_first_to_print(sentence):
        print(printable(sentence), file=sys.stderr)
    answer({"status": "refused", "error": printable(sentence)})
    return 2


def without_json(args: Sequence[str]) -> list[str]:
    """Return the command line without --json. UserError if the command doesn't support --json."""
    one_answer = {
        "task=compare",
        "task=grade",
        "task=ledger",
        "task=findings",
        "search=verdict",
        "search=ladder",
        "search=profile",
        "search=rates",
        "search=ranking",
        "search=finding",
    } & set(args)
    if JSON in args and (not one_answer or {"-m", "--multirun"} & set(args)):
        raise UserError(
            "--json is for a single task=compare, task=grade, task=ledger or task=findings, and for search=verdict,"
            " search=ladder, search=profile, search=rates, search=ranking and search=finding. Leave it out."
        )
    if JSON in args and (without := {*NO_ANSWER, "sweep.dry_run=true"} & set(args)):
        raise UserError(f"--json prints the answer of a command, and {min(without)} has none. Leave one out.")
    return [arg for arg in args if arg != JSON]


def exit_with(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Exit with the code that `main` returns for the command line."""
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        # while Python shuts down, Ctrl-C would print a traceback
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_hydra(
    job: Callable[[DictConfig], None],
    config_name: str,
    folders: Sequence[str],
    resolvers: Mapping[str, Callable[..., str]],
) -> None:
    """Let Hydra read `sys.argv`, compose the configuration, and call `job` with it, or with each one of a grid.

    Args:
        config_name: the file of conf/ to start from.
        folders: the folders given with --config-dir.
        resolvers: functions for interpolations `${name:}`; called with the whole configuration as `_root_`.

    Raises:
        UserError: the configuration can't be composed.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    import hydra
    from omegaconf import OmegaConf

    from minllm.config.explain import explained
    from minllm.schema.foreign import files_checked

    for name, resolver in resolvers.items():
        OmegaConf.register_resolver(name, resolver, replace=True, annotation_validation="off")
    with explained(folders), files_checked():
        hydra.main(config_path=str(CONF), config_name=config_name, execution_whitelist=OF_HYDRA)(job)()


def task_overrides(hydra_cfg: DictConfig) -> list[str]:
    """Return the overrides of the command line, except those for Hydra itself."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(hydra_cfg.overrides.task, resolve=False)


def check_flags(args: Sequence[str]) -> None:
    """Reject flags that don't exist, lack their value or exclude each other."""
    longs = {short: flag for flag, (short, _) in FLAGS.items() if short}
    given: dict[str, str | None] = {}
    for index, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        flag = longs.get(name, name)
        if not name.startswith("-") or (index and is_value(args, index, longs)):
            continue
        if flag not in FLAGS:
            meant = f" Did you mean {arg.lstrip('-')}?" if equals else suggest(flag, FLAGS)
            raise UserError(f"There is no flag {flag}.{meant} Overrides are written key=value.")
        if flag not in VALUES and equals:
            raise UserError(f"{flag} takes no value. Type {flag} alone, and overrides after it.")
        following = args[index + 1] if index + 1 < len(args) else None
        given[flag] = value if equals else following
        if flag == "--info" and not equals and following not in VALUES[flag]:
            raise UserError(f"--info needs one of {', '.join(VALUES[flag])}: type --info defaults.")
        check_flag_value(flag, given[flag])
    if modes := [flag for flag in given if flag in MODES][1:]:
        raise UserError(
            f"{' and '.join(flag for flag in given if flag in MODES)} can't be combined. Leave out {modes[0]}."
        )
    for flag in ("--resolve", "--package"):
        if flag in given and "--cfg" not in given:
            raise UserError(
                f"{flag} needs --cfg: type --cfg job {flag}{' model' if flag == '--package' else ''}."
            )


def is_value(args: Sequence[str], index: int, longs: Mapping[str, str]) -> bool:
    """Whether an argument is the value of the flag before it, such as the folder in `--config-dir my_idea`."""
    before = args[index - 1]
    return longs.get(before, before) in VALUES and not args[index].startswith("-")


def check_flag_value(flag: str, value: str | None) -> None:
    values = VALUES.get(flag)
    if values is None or (flag == "--info" and (value is None or "=" in value)):
        return  # --info has a default
    if flag == "--shell-completion":
        if value is None or value not in values:
            raise UserError(f"{flag} needs one of: {', '.join(values)}.")
    elif values and value not in values:
        raise UserError(
            f"{flag} must be one of {', '.join(values)}, not {value or 'empty'}: type {flag} {values[0]}."
        )
    elif value is None or value.startswith("-"):
        raise UserError(f"{flag} needs a value: {flag} {'model' if flag == '--package' else '<name>'}.")


def check_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError(
            "The working directory has been removed. Change to another one: cd <folder>"
        ) from error


def check_encoding(args: Sequence[str]) -> None:
    """Reject arguments that Python couldn't decode, because they can't be written to a file."""
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError as error:
            shown = arg.encode("ascii", "backslashreplace").decode()
            raise UserError(
                f"{shown} can't be decoded in this terminal's encoding. If it is UTF-8, set PYTHONUTF8=1 and try again."
            ) from error


def expand_home(args: Sequence[str]) -> list[str]:
    """Expand ~ in --config-dir=~/…, which the shell doesn't expand after an equals sign."""
    names = set(config_dirs(args))
    result = []
    for arg in args:
        flag, equals, folder = arg.partition("=")
        if arg in names or (flag == "--config-dir" and equals):
            folder = arg if arg in names else folder
            arg = arg.removesuffix(folder) + os.path.expanduser(folder)
        result.append(arg)
    return result


def check_folders(args: Sequence[str]) -> None:
    """Reject a --config-dir that can't be read, and empty values of Hydra's own keys."""
    for folder in config_dirs(args):
        if not folder.strip():
            raise UserError(f"--config-dir must name a folder, not {folder!r}.{UNSET}")
        try:
            next(Path(folder).iterdir(), None)
        except OSError as error:
            near = "" if Path(folder).exists() else neighbour(Path(folder))
            raise UserError(f"--config-dir {folder} can't be read: {error.strerror}.{near}") from error
    for arg in args:
        key, equals, value = arg.partition("=")
        if equals and key_of(arg).startswith("hydra.") and not value.strip("'\" \t"):
            raise UserError(f"{key} must not be empty.{UNSET}")


def config_dirs(args: Sequence[str]) -> list[str]:
    """Return the folders given with --config-dir."""
    after = [value for flag, value in zip(args, args[1:]) if flag in ("--config-dir", "-cd")]
    return after + [arg.partition("=")[2] for arg in args if arg.startswith("--config-dir=")]
