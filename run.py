"""The door: `python run.py [group=option …] [key=value …]`. `python run.py --help` lists what there is."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minllm.door import config_dirs, enter, refuse_environment, run_hydra, typed_words
from minllm.errors import UserError, printable
from minllm.help import help_text

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(words: Sequence[str]) -> int:
    """Do what the command line says and return the exit code: 0, 2 after a user's mistake, 1 after our bug."""
    return enter(words, help_text, lambda: compose_and_run(config_dirs(words)))


def compose_and_run(folders: Sequence[str]) -> int:
    """Let Hydra compose the configuration and run the task once, or once for each combination of a grid."""
    gc.disable()  # composing makes many small objects and no garbage: a tenth of the time to --cfg's answer
    from hydra.core.hydra_config import HydraConfig

    from minllm.explain import disk_error
    from minllm.grid import grid_table, name_for_logger
    from minllm.runs import OUTPUTS, choice_words, remove_if_empty

    exit_codes, grid = [0], []

    # a job keeps its own trouble to itself: one impossible combination mustn't cost the rest of a grid
    def job(composed: DictConfig) -> None:
        from minllm.config import perform, settle

        gc.enable()
        now = HydraConfig.get()
        overrides, run_dir = typed_words(now), Path(now.runtime.output_dir)
        in_grid = now.mode is not None and now.mode.name == "MULTIRUN"
        before = f"{' '.join(overrides)}: " if in_grid else ""
        try:
            refuse_environment(now)
            cfg = settle(composed, overrides, now.runtime)
            if in_grid:
                grid.append((overrides, run_dir))
                # a word that was typed as it stands is the same in all runs
                varied = [word for word in overrides if word not in sys.argv]
                name_for_logger(cfg, Path(now.sweep.dir), varied)
            perform(cfg, run_dir)
        except BrokenPipeError:
            raise
        except Exception as error:
            sentence = error if isinstance(error, UserError) else disk_error(error)
            said = before + (str(sentence) if sentence else traceback.format_exc())
            print(printable(said), file=sys.stderr)
            exit_codes.append(2 if sentence else 1)
        finally:
            remove_if_empty(run_dir)

    def folder_words(*, _root_: DictConfig) -> str:
        return choice_words(typed_words(_root_.hydra))

    try:
        run_hydra(job, "config", folders, {"choice_words": folder_words})
    finally:
        for folder in OUTPUTS.glob("*/*-grid-*"):
            remove_if_empty(folder)
    if table := grid_table(grid):
        print(table)
    return 1 if 1 in exit_codes else max(exit_codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
