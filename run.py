"""The door: `python run.py [group=option …] [key=value …]`. `python run.py --help` lists what there is."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minllm.errors import UserError, suggest
from minllm.help import CONF, FLAGS, help_text

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(words: Sequence[str]) -> int:
    """Do what the command line says and return the exit code: 0, 2 after a user's mistake, 1 after our bug."""
    try:
        check_flags(words)
        if {"--help", "-h"} & set(words):
            print(help_text(config_dirs(words)), flush=True)
            return 0
        if any(word.startswith("from=") for word in words):
            from minllm.config import with_imported

            sys.argv[1:] = with_imported(words)  # which is what Hydra reads
        return compose_and_run(config_dirs(words))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def compose_and_run(folders: Sequence[str]) -> int:
    """Let Hydra compose the configuration and run the task once, or once for each combination of a grid."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print at length; we say it shortly
    gc.disable()  # composing makes many small objects and no garbage: a tenth of the time to --cfg's answer
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from minllm.explain import disk_error, explained
    from minllm.grid import grid_table
    from minllm.runs import OUTPUTS, choice_words, remove_if_empty

    exit_codes, grid = [0], []

    def typed(hydra_cfg: DictConfig) -> list[str]:
        return OmegaConf.to_container(hydra_cfg.overrides.task, resolve=False)

    # a job keeps its own trouble to itself: one impossible combination mustn't cost the rest of a grid
    def job(composed: DictConfig) -> None:
        from minllm.config import perform, settle

        gc.enable()
        now = HydraConfig.get()
        overrides, run_dir = typed(now), Path(now.runtime.output_dir)
        before = ""
        if now.mode and now.mode.name == "MULTIRUN":
            before = f"{' '.join(overrides)}: "
            grid.append((overrides, run_dir))
        try:
            refuse_environment(now)
            perform(settle(composed, overrides, now.runtime.choices), run_dir)
        except BrokenPipeError:
            raise
        except Exception as error:
            sentence = error if isinstance(error, UserError) else disk_error(error)
            print(f"{before}{sentence}" if sentence else before + traceback.format_exc(), file=sys.stderr)
            exit_codes.append(2 if sentence else 1)
        finally:
            remove_if_empty(run_dir)

    def folder_words(*, _root_: DictConfig) -> str:
        return choice_words(typed(_root_.hydra))

    OmegaConf.register_resolver("choice_words", folder_words, replace=True, annotation_validation="off")
    try:
        with explained(folders):
            hydra.main(config_path=str(CONF), config_name="config", execution_whitelist=["minllm.*"])(job)()
    finally:
        for folder in OUTPUTS.glob("*/*-grid-*"):
            remove_if_empty(folder)
    if table := grid_table(grid):
        print(table)
    return 1 if 1 in exit_codes else max(exit_codes)


def refuse_environment(hydra_cfg: DictConfig) -> None:
    """Environment variables can make other programs run code, so no file sets them: only the command line may."""
    if hydra_cfg.job.env_set and not any("hydra.job.env_set" in word for word in hydra_cfg.overrides.hydra):
        raise UserError("A file can't set environment variables (hydra.job.env_set). Set them in the shell.")


def check_flags(words: Sequence[str]) -> None:
    """Refuse a flag that doesn't exist, which would otherwise be answered with a page of usage."""
    known = {*FLAGS, *(short for short, _ in FLAGS.values())}
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("-") and flag not in known:
            raise UserError(f"There is no flag {flag}.{suggest(flag, FLAGS)} Settings are written key=value.")


def config_dirs(words: Sequence[str]) -> list[str]:
    """Return the folders that --config-dir names."""
    after = [value for flag, value in zip(words, words[1:]) if flag in ("--config-dir", "-cd")]
    return after + [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
