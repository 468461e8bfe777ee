"""What run.py and sweep.py have in common: how a command line is received, and how trouble is answered."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from minllm.errors import UserError, suggest
from minllm.help import CONF, FLAGS
from minllm.words import quoted

if TYPE_CHECKING:
    from omegaconf import DictConfig

BROKEN_PIPE = 141
"""The exit code when nobody reads what is printed any more, as shells have it: 128 + SIGPIPE."""


def enter(words: Sequence[str], help_text: Callable[[Sequence[str]], str], act: Callable[[], int]) -> int:
    """Do what the command line says and return the exit code: 0, 2 after a user's mistake, 1 after our bug.

    Args:
        words: the command line; the words of a model that is imported are added to it, and what Hydra wants in
            quotes is quoted.
        help_text: makes the page of --help, given the folders of options.
        act: does the rest, reading `sys.argv` as Hydra does.
    """
    try:
        check_flags(words)
        if {"--help", "-h"} & set(words):
            print(help_text(config_dirs(words)), flush=True)
            return 0
        words = [quoted(word) for word in words]
        if any(word.startswith("from=") for word in words):
            from minllm.config import with_imported

            words = with_imported(words)
        sys.argv[1:] = words  # which is what Hydra reads
        return act()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def run_hydra(
    job: Callable[[DictConfig], None],
    config_name: str,
    folders: Sequence[str],
    resolvers: Mapping[str, Callable[..., str]],
) -> None:
    """Let Hydra read `sys.argv`, compose the configuration, and do `job` with it as often as it takes.

    Args:
        config_name: the file of conf/ that it starts from.
        folders: the further folders of options that the command line names.
        resolvers: what a configuration may refer to as `${name:}`; called with `_root_`, all that was composed.

    Raises:
        UserError: the command line makes no configuration.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print at length; we say it shortly
    import hydra
    from omegaconf import OmegaConf

    from minllm.explain import explained

    for name, resolver in resolvers.items():
        OmegaConf.register_resolver(name, resolver, replace=True, annotation_validation="off")
    with explained(folders):
        hydra.main(config_path=str(CONF), config_name=config_name, execution_whitelist=["minllm.*"])(job)()


def typed_words(hydra_cfg: DictConfig) -> list[str]:
    """Return the command line's words, but for Hydra's own."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(hydra_cfg.overrides.task, resolve=False)


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
