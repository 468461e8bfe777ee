"""The other door: `python sweep.py search=size`. It searches what run.py runs; `--help` lists what there is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minllm.door import config_dirs, enter
from minllm.errors import UserError
from minllm.help import CONF, sweep_help_text

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(words: Sequence[str]) -> int:
    """Do what the command line says and return the exit code: 0, 2 after a user's mistake, 1 after crashes."""
    return enter(words, sweep_help_text, lambda: compose_and_search(config_dirs(words)))


def compose_and_search(folders: Sequence[str]) -> int:
    """Let Hydra compose the search, and lead it."""
    if any(word.startswith("hydra.mode=") or word in ("--run", "-r") for word in sys.argv[1:]):
        raise UserError(
            "sweep.py searches, and run.py runs once: leave out hydra.mode and --run, or type run.py."
        )
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print at length; we say it shortly
    import hydra
    from omegaconf import OmegaConf

    from minllm.explain import explained
    from minllm.runs import choice_words
    from minllm.sweep.plugin import TooManyFailures, job, leads, register

    # of the study and its folder: the same words are the same search
    def search_words(*, _root_: DictConfig) -> str:
        chosen = _root_.hydra.runtime.choices.search
        typed = OmegaConf.to_container(_root_.hydra.overrides.task, resolve=False)
        return choice_words([f"search/={chosen}", *(word for word in typed if not leads(word))])

    register()
    OmegaConf.register_resolver("search_words", search_words, replace=True, annotation_validation="off")
    OmegaConf.register_resolver("choice_words", lambda: "", replace=True, annotation_validation="off")
    try:
        with explained(folders):
            hydra.main(config_path=str(CONF), config_name="sweep", execution_whitelist=["minllm.*"])(job)()
    except TooManyFailures as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
