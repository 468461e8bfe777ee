"""Arms, and the searches that train them: what a verdict and a ladder have in common."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, open_dict, read_write

from minllm.errors import UserError, printable
from minllm.files.atomic import refuse_links_at_top
from minllm.files.names import short
from minllm.model.build import build_shapes
from minllm.model.cost import cost
from minllm.model.size import TARGETS
from minllm.runs.folder import to_json, write_text
from minllm.schema.building import build
from minllm.schema.overrides import key_of
from minllm.study import recorded
from minllm.study.measures import METRIC
from minllm.sweep.metric import Metric
from minllm.sweep.plugin import LauncherOptions, PruningSweeper
from minllm.sweep.processes import ForkServer
from minllm.sweep.space import spelled
from minllm.sweep.spec import SearchSpec, command_line
from minllm.training import machine
from minllm.verdict.phases import checked_settings
from minllm.verdict.protocol import (
    FIRST_TUNING_SEED,
    OfArms,
    arms_in,
    refuse_changes,
    refuse_own_seeds,
    refuse_without_effect,
)

OF_ARMS = ("arms", "ladder", "mixers", "probes", "models", "datasets")
"""Sections that say what is trained, and are no part of a run's configuration."""
OVERRIDES_ONLY = {"_target_": "minllm.sweep.space.Plan"}
"""A search whose space comes only from its overrides."""

NO_PRUNING = {"_target_": "minllm.sweep.pruners.none"}
TUNING_EVALUATIONS, PAIR_EVALUATIONS = 1, 3
"""How often runs are evaluated, unless the command line sets `train.evals` or `sweep.trial`: tuning reads the last loss
alone, and pairs have learning curves. These runs are short: ten evaluations may take longer than training."""


class ArmsSearch:
    """The arms, and how the searches that train them are configured.

    Args:
        sweeper: the sweeper that Hydra instantiated; it holds the rest of the configuration.
        overrides: the command line's overrides, without Hydra's own.
    """

    file: ClassVar[str]
    """The name of the file in which the protocol is saved."""
    metric: Metric = METRIC
    """What its runs are compared by."""
    server: ForkServer | None = None
    """The process that starts the runs of all searches."""

    def __init__(self, sweeper: PruningSweeper, overrides: Sequence[str]):
        self.sweeper, self.config = sweeper, sweeper.config
        self.protocol: OfArms = build(self.config.search)
        settings = checked_settings(self.config)
        self.arms = self.read_arms()
        refuse_own_seeds(overrides, self.protocol)
        refuse_without_effect([*overrides, *self.config.hydra.overrides.hydra], self.protocol)
        self.name, self.folder = settings.name, Path(str(self.config.hydra.sweep.dir))
        self.overrides = [override for override in overrides if section_of(override) not in OF_ARMS]
        self.rungs_typed = [override for override in overrides if section_of(override) == "ladder"]
        self.deadline = time.monotonic() + (settings.minutes or math.inf) * 60
        self.precision: list[str] = []
        self.size: list[str] = []

    def read_arms(self) -> dict[str, list[str]]:
        """Return the overrides of each arm, by name."""
        return arms_in(self.config.arms, self.protocol)

    def config_of(self, name_of_phase: str, keep: str, evaluations: int) -> DictConfig:
        """Return the configuration of a phase's search, which keeps `keep` checkpoints."""
        config = self.without_arms()
        left = self.deadline - time.monotonic()
        with read_write(config.hydra):
            config.sweep.name = short(f"{self.name}-{name_of_phase}")
            config.sweep.keep_checkpoints = keep
            config.sweep.metric = self.metric
            if not any(key_of(override).startswith("sweep.trial") for override in self.overrides):
                config.sweep.trial["train.evals"] = evaluations
            config.sweep.minutes = None if math.isinf(left) else max(left, 1e-9) / 60
            config.hydra.sweep.dir = str(self.folder / name_of_phase)
        return config

    def composed(self, name: str, rung: Sequence[str] = ()) -> DictConfig:
        """Return an arm's configuration with the overrides known so far, and those of a rung."""
        spec = self.spec(name, [f"seed=range(0,{FIRST_TUNING_SEED})"], rung)
        for key in sorted(set(spec.space.distributions) - {"seed"}):
            raise UserError(f"{key} has several values. Make each a separate arm: 'arms.b=[{key}=<value>]'.")
        return spec.space.base

    def spec(self, name: str, overrides: Sequence[str], rung: Sequence[str] = ()) -> SearchSpec:
        return SearchSpec(
            self.without_arms(), [*self.overrides_of(name, rung), *overrides], self.sweeper.hydra_context
        )

    def overrides_of(self, name: str, rung: Sequence[str] = ()) -> list[str]:
        return [*self.overrides, *self.precision, *self.size, *rung, *self.arms[name]]

    def size_override(self, first: DictConfig) -> list[str]:
        """Return the override that gives each arm the size of `first`, unless a size is configured already."""
        equal = self.protocol.equal
        if equal is None or any(first.size[name] is not None for name in TARGETS):
            return []
        if first.init_from:
            raise UserError(
                f"With init_from= no {self.protocol.noun} can resize models: add search.equal=null."
            )
        costs = cost(build_shapes(first, build(first.tokenizer).vocab_size), first.data.seq_len)
        target = getattr(costs, "state_bytes_per_sequence" if equal == "state_bytes" else equal)
        if target is None:
            raise UserError("search.equal=state_bytes needs a first model that can generate.")
        return [f"size.{equal}={target:.12g}"]

    def plan(self) -> str:
        """Return a description of what will be run."""
        raise NotImplementedError

    def begin(self) -> bool:
        """Print the plan, and save the protocol; return whether anything is to be run."""
        print(printable(self.plan()), flush=True)
        if self.config.sweep.dry_run:
            return False
        refuse_links_at_top(self.folder, appended=())
        self.write_protocol({})
        return True

    def precision_override(self) -> list[str]:
        """Return the override that fixes the precision of all runs; `auto` is resolved once, at the start."""
        trained = any(self.folder.glob("seeds-*"))
        if recorded.is_there(self.folder, self.file):
            saved = self.saved_protocol()
            if trained or any(self.folder.glob("tune-*")):
                refuse_changes(saved["protocol"], self.protocol_data(), self.name, self.protocol.noun)
            return saved["words"]
        if trained:
            raise UserError(
                f"{self.folder / self.file} is missing, so the margin and {self.protocol.numbers} chosen before"
                f" training are unknown. Restore the file, or start another {self.protocol.noun}: sweep.name=<name>."
            )
        runs_here = self.config.hydra.launcher._target_ == LauncherOptions._target_
        if self.config.train.precision != "auto" or not runs_here:
            return []
        device = machine.choose_device(self.config.train.device)
        return [f"train.precision={machine.choose_precision('auto', device)[0]}"]

    def saved_protocol(self) -> dict[str, Any]:
        """Return what `save_protocol` saved. UserError if it can't be read."""
        try:
            saved = recorded.read_object(self.folder, self.file)
            recorded.check(saved, {"protocol": dict[str, Any], "words": list[str]}, self.file)
        except recorded.Damaged as error:
            raise UserError(
                f"In {self.folder}: {error} Restore the file, or start another {self.protocol.noun}:"
                " sweep.name=<name>."
            ) from error
        return saved

    def write_protocol(self, more: Mapping[str, Any]) -> None:
        """Save the protocol and the precision of all runs, which a later call continues with."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"protocol": self.protocol_data(), "words": self.precision, **more}
        write_text(self.folder / self.file, to_json(content))

    def protocol_data(self) -> dict[str, Any]:
        return {**asdict(self.protocol), "arms": self.arms}

    def logger_overrides(self, name: str, of: str = "") -> list[str]:
        """Return the overrides that set the group and job type of these runs in Weights & Biases."""
        logger = self.config.logger
        names = {"group": f"{self.name}{of}", "job_type": self.display_name(name)}
        return [
            f"logger.{key}={spelled(label)}" for key, label in names.items() if logger.get(key, "") is None
        ]

    def without_arms(self) -> DictConfig:
        """Return the configuration of a search without arms that runs each combination once, without pruning."""
        config = copy.deepcopy(self.config)
        with open_dict(config):
            for section in (*OF_ARMS, "grader", "judge"):
                config.pop(section, None)
            config.search, config.sweep.pruner = OVERRIDES_ONLY, NO_PRUNING
        return config

    def display_name(self, name: str) -> str:
        return " ".join(self.arms[name]) or name

    def command(self) -> str:
        """Return the command line with secrets removed."""
        arms = [f"arms.{name}=[{','.join(overrides)}]" for name, overrides in self.arms.items()]
        shared = [word for word in self.overrides if key_of(word) != "search.champion"]  # arms.a names it
        return command_line(self.config.hydra, [*shared, *arms, *self.rungs_typed])


def section_of(override: str) -> str:
    return key_of(override).partition(".")[0]
