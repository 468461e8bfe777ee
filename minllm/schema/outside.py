"""Error messages for code from outside minllm, which `extensions` names: where it fails, and why."""

from __future__ import annotations

import importlib
import linecache
import os
import traceback
from collections.abc import Container
from types import FrameType, ModuleType
from typing import Any

from minllm.errors import UserError, first_line


def check_path(target: str, setting: str) -> None:
    """Raise UserError unless `target` is the dotted path of a class or function.

    Args:
        setting: the setting to name in messages, such as model.attn._target_=my_idea.decay.Decay.
    """
    if "." not in target or not all(part.isidentifier() for part in target.split(".")):
        raise UserError(
            f"{setting} must be the dotted path of a class, such as my_idea.decay.Decay for the class Decay in"
            " my_idea/decay.py."
        )


def named(target: str, setting: str) -> Any:
    """Import and return what a dotted path names.

    Raises:
        UserError: it doesn't exist, or importing its module fails.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(imported(module, setting), name)
    except AttributeError as error:
        raise UserError(f"{setting}: {module} has no '{name}'.") from error


def imported(module: str, setting: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{setting}: there is no module '{error.name}'.") from error
        raise failed(error, module, setting) from error
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(error, module, setting) from error


def failed(error: BaseException, module: str, setting: str) -> BaseException:
    """Return the error to raise for a failed import; errors in minllm itself keep their traceback."""
    if module.partition(".")[0] == "minllm":
        return error
    return UserError(f"{setting}: importing {module} fails {why(error, module)}")


def code_error(error: BaseException, packages: Container[str]) -> UserError | None:
    """Return the sentence for an error in an option's class of these packages; None for others.

    A task from outside is a program of its own, whose errors keep their traceback.
    """
    frames = frames_of(error, packages)
    owners = [frame.f_locals["self"] for frame in frames if "self" in frame.f_locals]
    if not owners:
        return None
    code = frames[-1].f_code
    place = getattr(owners[-1], "stands_as", None)
    function = getattr(code, "co_qualname", code.co_name)  # Python 3.10 has no qualified names
    return UserError(f"{place + ': ' if place else ''}{function} fails {why(error, package_of(frames[-1]))}")


def why(error: BaseException, package: str) -> str:
    """Return the line of a package's code at which an error was raised, and the error."""
    message = type(error).__name__ + (f": {first_line(error)}" if str(error) else "")
    if isinstance(error, SyntaxError) and error.filename:
        return (
            f"at {os.path.relpath(error.filename)}, line {error.lineno}: {type(error).__name__}: {error.msg}."
        )
    frames = frames_of(error, (package.partition(".")[0],))
    if not frames:
        return f"with {message}."
    frame = frames[-1]
    number = next(line for each, line in traceback.walk_tb(error.__traceback__) if each is frame)
    file = frame.f_code.co_filename
    code = linecache.getline(file, number).strip()
    return f"at {os.path.relpath(file)}, line {number}{f', `{code}`' if code else ''}: {message}."


def frames_of(error: BaseException, packages: Container[str]) -> list[FrameType]:
    """Return the frames of an error that run code of these packages, the innermost last."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__) if package_of(frame) in packages]


def package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
