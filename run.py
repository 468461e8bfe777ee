"""Runs a task: `python run.py [group=option …] [key=value …]`. See `python run.py --help`."""

from __future__ import annotations

import os
import sys

import minllm  # noqa: F401  (the package beside this file, even if another one is installed)

if __name__ == "__main__":  # Python searches this folder first, where a queue.py would hide its own
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path.sort(key=lambda folder: folder == here)

import gc
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minllm.cli.help import help_text
from minllm.cli.main import config_dirs, exit_with, refused, run_command, run_hydra, task_overrides
from minllm.errors import UserError, printable
from minllm.page.terminal import BROKEN_PIPE, NOT_SETTLED, exit_code
from minllm.schema.foreign import refuse_environment
from minllm.schema.overrides import key_of
from minllm.training.launched import is_first_to_print, refuse_several_processes

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(args: Sequence[str]) -> int:
    """Execute the command line and return the exit code: 0, 2 after a user's mistake, 1 after a bug, 3 if unsettled."""
    return run_command(args, help_text, lambda: compose_and_run(config_dirs(args)))


def compose_and_run(folders: Sequence[str]) -> int:
    """Let Hydra compose the configuration and run the task once, or once for each combination of a grid."""
    gc.disable()  # composing creates many objects and no garbage; collecting takes a tenth of the time of --cfg
    refuse_misplaced(sys.argv[1:])
    if is_grid(sys.argv[1:]):
        refuse_several_processes("a grid (-m)")
    if is_for_a_job(sys.argv[1:]):
        sys.argv.append("hydra.mode=MULTIRUN")  # otherwise Hydra doesn't use its launcher
    from hydra.core.hydra_config import HydraConfig

    from minllm.grid.multirun import SWEEPER, GridEnded, register
    from minllm.runs.find import remove_if_empty, short_folder_name

    codes = [0]

    # errors are reported here and not raised, so that the other runs of a grid continue
    def job(composed: DictConfig) -> int:
        from minllm.config.compose import perform, resolve_config
        from minllm.grid.manifest import TRAINS, overrides_to_continue

        gc.enable()
        now = HydraConfig.get()
        overrides, run_dir = task_overrides(now), Path(now.runtime.output_dir)
        in_grid = now.mode is not None and now.mode.name == "MULTIRUN" and not is_submitted()
        before = f"{' '.join(overrides)}: " if in_grid else ""
        try:
            refuse_environment(now)
            if composed.task.get("_target_") != TRAINS:
                refuse_several_processes(f"task={now.runtime.choices.task}")
            if in_grid:
                overrides = overrides_to_continue(composed, overrides, run_dir)
            result = perform(resolve_config(composed, overrides, now.runtime), run_dir)
            if getattr(result, "is_answered", True) is False:  # a comparison
                codes.append(NOT_SETTLED)
        except BrokenPipeError:  # raised from here, it would make Hydra print a message
            codes.append(BROKEN_PIPE)
        except Exception as error:
            sentence = error if isinstance(error, UserError) else sentence_for(error, composed)
            if sentence:
                codes.append(refused(f"{before}{sentence}"))
            else:
                if is_first_to_print(repr(error)):
                    print(printable(before + traceback.format_exc()), file=sys.stderr)
                codes.append(1)
        except SystemExit as end:
            if not is_submitted():
                raise
            codes.append(exit_code(end))
        finally:
            remove_if_empty(run_dir)
        return codes[-1]

    def folder_words(*, _root_: DictConfig) -> str:
        return short_folder_name(task_overrides(_root_.hydra))

    register()
    sys.argv.append(f"hydra/sweeper={SWEEPER}")
    try:
        run_hydra(job, "config", folders, {"choice_words": folder_words})
    except GridEnded as end:
        return end.code
    if codes[-1] == BROKEN_PIPE:
        raise BrokenPipeError
    return codes[-1]


def is_for_a_job(words: Sequence[str]) -> bool:
    """Whether a single run is for another launcher than this process, such as submitit_slurm."""
    launcher = [word.partition("=")[2] for word in words if key_of(word) == "hydra/launcher"]
    return launcher not in ([], ["basic"]) and not is_grid(words)


def is_submitted() -> bool:
    """Whether this process is a task of a submitted job."""
    return "SUBMITIT_EXECUTOR" in os.environ


def is_grid(words: Sequence[str]) -> bool:
    return bool({"-m", "--multirun"} & set(words)) or any(word.startswith("hydra.mode=") for word in words)


def sentence_for(error: Exception, composed: DictConfig) -> UserError | None:
    """Return the message for errors that aren't bugs in minllm: memory, disk, and code of extensions."""
    from minllm.errors import disk_error, memory_error
    from minllm.schema.outside import code_error

    packages = {str(name).partition(".")[0] for name in composed.get("extensions") or []}
    return memory_error(error) or disk_error(error) or code_error(error, packages)


def refuse_misplaced(args: Sequence[str]) -> None:
    """Reject overrides of Hydra that would have no effect, and other sweepers than the grid."""
    in_grid = is_grid(args)
    for word in args:
        key = key_of(word)
        if key in ("hydra/sweeper", "hydra.sweeper._target_"):
            raise UserError(
                f"run.py takes no {word}: with -m it runs every combination of the values. To search with Optuna, use"
                " sweep.py, such as: python sweep.py search=size"
            )
        if in_grid and key.startswith("hydra.run."):
            raise UserError(
                f"{key} is for a single run. For the folder of a grid (-m), type hydra.sweep.dir=<folder>."
            )
        if not in_grid and key.startswith(("hydra.sweep.", "hydra.sweeper.")):
            raise UserError(
                f"{key} is for a grid: add -m and several values, such as -m seed=0,1. For the folder of a single run,"
                " type hydra.run.dir=<folder>."
            )


if __name__ == "__main__":
    exit_with(main)
