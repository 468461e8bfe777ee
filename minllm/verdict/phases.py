"""A phase of a verdict: a search with its own folder, such as the tuning or the seeds of an arm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from minllm.schema.building import build
from minllm.schema.checking import allowed_packages, check_node
from minllm.sweep.plugin import PruningSweeper
from minllm.sweep.processes import ForkServer
from minllm.sweep.search import Search
from minllm.sweep.settings import SweepSettings

QUEUED = {"_target_": "optuna.samplers.RandomSampler", "seed": 0}
"""The sampler of a search that runs only what is queued."""
EACH_ONCE = {"_target_": "optuna.samplers.GridSampler", "_partial_": True, "search_space": {}}


@contextlib.contextmanager
def phase(
    verdict: PruningSweeper,
    config: DictConfig,
    overrides: Sequence[str],
    n_trials: int,
    sampler: dict[str, Any],
    server: ForkServer | None,
) -> Iterator[Search]:
    """Open a search and hold its lock.

    Args:
        verdict: the sweeper of the whole verdict.
        config: the search's own configuration.
        overrides: the overrides of its trials.
        server: the process that starts the trials of all searches, if they run in processes here.
    """
    own = PruningSweeper(OmegaConf.create(sampler), n_trials, verdict.n_jobs)
    own.setup(hydra_context=verdict.hydra_context, task_function=verdict.task_function, config=config)
    own.server = server
    search = Search(own, overrides)
    with search.opened(), search.leading():
        yield search


def checked_settings(config: DictConfig) -> SweepSettings:
    """Return the `sweep:` section. UserError if it or the `memory:` section is invalid, before anything is written."""
    for section in ("sweep", "memory"):
        check_node(config[section], section, allowed_packages(config))
    build(config.memory)
    return build(config.sweep)
