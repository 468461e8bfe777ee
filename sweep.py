"""Searches options and values of run.py: `python sweep.py search=size`. See `python sweep.py --help`."""

from __future__ import annotations

import os
import sys

import minllm  # noqa: F401  (the package beside this file, even if another one is installed)

if __name__ == "__main__":  # Python searches this folder first, where a queue.py would hide its own
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path.sort(key=lambda folder: folder == here)

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minllm.cli.help import sweep_help_text
from minllm.cli.main import config_dirs, exit_with, run_command, run_hydra, task_overrides
from minllm.errors import UserError, printable
from minllm.page.terminal import NOT_SETTLED
from minllm.training.launched import refuse_several_processes

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(args: Sequence[str]) -> int:
    """Execute the command line and return the exit code: 0, 2 after a user's mistake, 1 after crashes, 3 unsettled."""
    return run_command(args, sweep_help_text, lambda: compose_and_search(args))


def compose_and_search(args: Sequence[str]) -> int:
    """Let Hydra compose the configuration, and run the search."""
    if any(word.startswith("hydra.mode=") or word in ("--run", "-r") for word in args):
        raise UserError(
            "sweep.py only searches. Leave out hydra.mode and --run, or use run.py for a single run."
        )
    refuse_several_processes("sweep.py")
    from minllm.runs.find import short_folder_name
    from minllm.sweep.plugin import NotSettled, RepeatedCrashes, is_search_key, job, register

    # the name of the study and its folder: the same overrides are the same search
    def search_words(*, _root_: DictConfig) -> str:
        if "hydra" not in _root_:  # as with --cfg job --resolve
            return "search"
        chosen = f"search/={_root_.hydra.runtime.choices.search}"
        arms = [word for args in (_root_.get("arms") or {}).values() for word in args or []]
        arms += [word for entry in _root_.get("mixers") or [] for word in str(entry).split()]
        return short_folder_name(
            [chosen, *arms, *(word for word in task_overrides(_root_.hydra) if not is_search_key(word))]
        )

    register()
    # a trial's folder is named by its number; choice_words is only needed by config.yaml
    resolvers = {"search_words": search_words, "choice_words": lambda: ""}
    try:
        run_hydra(job, "sweep", config_dirs(args), resolvers)
    except RepeatedCrashes as error:
        print(printable(str(error)), file=sys.stderr)
        return 1
    except NotSettled:
        return NOT_SETTLED
    return 0


if __name__ == "__main__":
    exit_with(main)
