"""Grids, `python run.py -m …`: every combination of the given values is a run in its own process.

The processes are forked from this one after all imports, so that the imports happen once. The grid's folder records
its runs (see `manifest.py`), and the same command continues where it stopped.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import run_job
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from minllm.errors import UserError, disk_sentence, printable
from minllm.grid.manifest import (
    TRAINS,
    Grid,
    computation_hash,
    fingerprint,
    grid_for,
    is_complete_run,
    locked,
    prepare_folder,
)
from minllm.grid.table import grid_table, name_for_logger
from minllm.page.units import duration
from minllm.runs.find import remove_if_empty
from minllm.schema.overrides import in_quotes, key_of
from minllm.sweep.processes import ENVIRONMENT

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from minllm.grid.children import Children

SWEEPER = "grid"
WARM = ("minllm.tasks.train", "minllm.model.attention.attention", "numpy.random", "torch._dynamo")
"""Modules that training imports, some of them lazily; imported once, before forking."""

FEW, MANY = 20, 50
"""The number of combinations composed without a message, and the number between progress messages."""


def register() -> None:
    """Register `GridSweeper` with Hydra; run.py selects it."""
    Plugins.instance().register(GridSweeper)
    ConfigStore.instance().store(
        group="hydra/sweeper", name=SWEEPER, node=GridOptions, provider="minllm", replace=True
    )


@dataclass
class GridOptions:
    """The keys of `hydra.sweeper`."""

    _target_: str = "minllm.grid.multirun.GridSweeper"
    n_jobs: int = 1


class GridEnded(Exception):
    """Raised when all runs of a grid have ended or it was stopped; `code` is the exit code of run.py."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


@dataclass
class Combination:
    """A run of a grid: its overrides, composed configuration and folder, and the overrides that the grid varies."""

    overrides: list[str]
    composed: DictConfig
    folder: Path
    varied: list[str]


class GridSweeper(Sweeper):
    """Runs every combination, `n_jobs` at a time."""

    def __init__(self, n_jobs: int):
        if n_jobs < 1:
            raise UserError(f"hydra.sweeper.n_jobs must be a whole number of 1 or more, not {n_jobs}.")
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        """Run the grid. Always ends with an exception, because Hydra returns no exit code.

        Raises:
            UserError: the overrides define no grid, or another process is running it.
            GridEnded: the grid has ended; has the exit code of run.py.
        """
        loader = self.context.config_loader
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        if self.config.hydra.runtime.choices.get("hydra/launcher") != "basic":
            raise GridEnded(self.submitted(parsed))
        all_combinations, varied = combinations(parsed)
        composed = [
            loader.load_sweep_config(self.config, overrides) for overrides in with_progress(all_combinations)
        ]
        identities = [fingerprint(cfg) for cfg in composed]
        refuse_duplicates(
            [select_keys(varied, overrides) for overrides in all_combinations],
            [computation_hash(cfg) for cfg in composed],
        )
        trains = all(cfg.task.get("_target_") == TRAINS for cfg in composed)
        grid = grid_for(self.config, select_keys(varied, arguments), identities, remembered=trains)
        runs = []
        for number, (overrides, cfg, identity) in enumerate(zip(all_combinations, composed, identities)):
            with open_dict(cfg):
                cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
            grid.pin_latest(cfg)
            name = grid.name_of(identity, str(cfg.hydra.sweep.subdir))
            with open_dict(cfg):
                cfg.hydra.sweep.dir, cfg.hydra.sweep.subdir = str(grid.folder), name
            name_for_logger(cfg, grid.group, select_keys(varied, overrides))
            runs.append(Combination(overrides, cfg, grid.folder / name, select_keys(varied, overrides)))
        try:
            with locked(grid):
                grid.write()
                code = self.run_all(grid, runs)
        finally:
            grid.remove_if_empty()
        raise GridEnded(code)

    def submitted(self, overrides: Sequence[Override]) -> int:
        """Run what isn't a grid where Hydra's launcher does, such as in a Slurm job; return its exit code."""
        from minllm.sweep.launchers import (
            refuse_without_slurm,  # with optuna, for which other runs needn't wait
        )

        hydra = self.config.hydra
        name = hydra.runtime.choices["hydra/launcher"]
        if any(override.is_sweep_override() for override in overrides):
            raise UserError(
                f"run.py runs grids on this machine only, without hydra/launcher={name}. For several runs at once,"
                " type hydra.sweeper.n_jobs=2. For a cluster, use sweep.py with search=grid."
            )
        if hydra.launcher.get("setup") and not any(
            key_of(word) == "hydra.launcher.setup" for word in hydra.overrides.hydra
        ):
            raise UserError(
                "hydra.launcher.setup runs shell commands, so it can't be set in a file. Type it on the command line."
            )
        folder = Path(str(hydra.run.dir)).absolute()
        with read_write(hydra):
            hydra.sweep.dir = str(folder.parent)
        launcher = Plugins.instance().instantiate_launcher(
            config=self.config, hydra_context=self.context, task_function=self.task
        )
        refuse_without_slurm(launcher)
        logging.getLogger("hydra_plugins").setLevel(logging.WARNING)
        print(
            f"The run will be in {folder}, and the job's log in {hydra.launcher.submitit_folder}", flush=True
        )
        places = [
            f"hydra.sweep.dir={in_quotes(str(folder.parent))}",
            f"hydra.sweep.subdir={in_quotes(folder.name)}",
        ]
        done = launcher.launch([[*(override.input_line for override in overrides), *places]], 0)
        return done[0].return_value

    def run_all(self, grid: Grid, runs: Sequence[Combination]) -> int:
        """Run what isn't complete yet, print the table, and return the exit code."""
        missing = [run for run in runs if not (grid.remembered and is_complete_run(run.folder))]
        done = len(runs) - len(missing)
        if done:
            print(completion_message(grid, done, len(runs)))
        codes = [0]
        if missing:
            from minllm.grid.children import Children

            warm_up(missing)
            progress = Progress(len(runs), done, self.n_jobs)
            with Children[Combination](self.n_jobs) as children:
                codes += self.run_missing(children, grid, missing, progress)
            if children.stopped_by:
                print(f"Stopped at {progress}. Repeat the command to continue.", file=sys.stderr)
                return 128 + children.stopped_by
        if table := grid_table([(run.overrides, run.folder) for run in runs]):
            print(table)
        return 1 if 1 in codes else max(codes)

    def run_missing(
        self, children: Children[Combination], grid: Grid, missing: Sequence[Combination], progress: Progress
    ) -> list[int]:
        """Run each in its own process, and return their exit codes."""
        codes, waiting = [], list(missing)
        while children.running or (waiting and not children.stopped_by):
            while waiting and not children.is_full and not children.stopped_by:
                run = waiting.pop(0)
                print(f"{progress}: {' '.join(run.varied)}", flush=True)
                if trouble := preparation_error(grid, run):
                    print(printable(f"{' '.join(run.overrides)}: {trouble}"), file=sys.stderr, flush=True)
                    progress.count_run(None)
                    codes.append(2)
                elif not self.started(children, run):
                    waiting.insert(0, run)  # retry when another has ended
                    break
            for run, end in children.ended():
                remove_if_empty(run.folder)
                print(end.out, end="", flush=True)
                print(end.err, end="", file=sys.stderr, flush=True)
                if end.broken_pipe:  # the reader of our output has closed it
                    raise BrokenPipeError
                if end.signal and not children.stopped_by:
                    print(
                        f"{' '.join(run.overrides)}: the process was killed by {end.signal}.", file=sys.stderr
                    )
                progress.count_run(end.seconds if end.code == 0 else None)
                codes.append(end.code)
        return codes

    def started(self, children: Children[Combination], run: Combination) -> bool:
        """Start a run's process; return False if the system can't start another one while others run.

        Raises:
            UserError: it can't even start a single one.
        """
        try:
            children.start(run, self.work(run), device_of(run.composed))
        except OSError as error:
            if children.running:
                return False
            raise UserError(
                f"{' '.join(run.overrides)}: no process can be started ({error.strerror}). Close other programs, or"
                f" free space in {tempfile.gettempdir()}. Repeat the command to continue."
            ) from error
        return True

    def work(self, run: Combination) -> Callable[[], int]:
        """Return the function that a run's process calls."""
        return lambda: (
            run_job(
                hydra_context=self.context,
                task_function=self.task,
                config=run.composed,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            ).return_value
        )


@dataclass
class Progress:
    """The number of runs that have ended, and an estimate of the remaining time."""

    total: int
    done: int
    n_jobs: int
    seconds: list[float] = field(default_factory=list)
    """The durations of the runs that succeeded."""

    def count_run(self, seconds: float | None) -> None:
        """Count a run that has ended; `seconds` is None if it failed, which doesn't count for the estimate."""
        self.done += 1
        if seconds is not None:
            self.seconds.append(seconds)

    def __str__(self) -> str:
        left = self.total - self.done
        if not self.seconds or not left:
            return f"{self.done}/{self.total}"
        rounds = math.ceil(left / self.n_jobs)
        each = sum(self.seconds) / len(self.seconds)
        return f"{self.done}/{self.total}, {duration(each * rounds, tenths=False)} left"


def preparation_error(grid: Grid, run: Combination) -> UserError | None:
    """Prepare the folder of a run; return the error if that isn't possible."""
    try:
        if grid.remembered:
            prepare_folder(run.folder)
    except UserError as error:
        return error
    except OSError as error:
        return UserError(disk_sentence(error))
    return None


def completion_message(grid: Grid, done: int, total: int) -> str:
    if done < total:
        return f"{done} of {total} runs in {grid.folder} are already complete; continuing with the others."
    return (
        f"All {total} runs of this grid in {grid.folder} are already complete, so nothing was trained. To train them"
        " again, choose another folder: hydra.sweep.dir=<folder>"
    )


def warm_up(runs: Sequence[Combination]) -> None:
    """Import the modules that each run would import."""
    os.environ.update(ENVIRONMENT)
    for name in WARM:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # garbage collection would copy memory pages that the processes share


def device_of(composed: DictConfig) -> str | None:
    device = OmegaConf.select(composed, "train.device", throw_on_missing=False)
    return device if isinstance(device, str) else None


# ---- combinations --------------------------------------------------------------------------------


def combinations(overrides: Sequence[Override]) -> tuple[list[list[str]], set[str]]:
    """Return the overrides of each combination, the last varying fastest, and the keys that are varied.

    Raises:
        UserError: nothing is varied, a list of values is empty, or a key is given twice.
    """
    choices: dict[str, list[str]] = {}
    varied = set()
    for override in overrides:
        key = override.get_key_element()
        if key_of(key) in varied:
            raise UserError(f"{key_of(key)} is given twice. Leave out one of them.")
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        else:
            if not override.is_discrete_sweep():
                raise UserError(
                    f"{override.input_line} is a range, but run.py -m needs a list of values, such as {key}=0.1,0.2. To"
                    " search a range, use sweep.py."
                )
            values = list(override.sweep_string_iterator())
            if not values:
                raise UserError(f"{override.input_line} has no values. Type some: {key}=<value>,<value>")
            varied.add(key_of(key))
        choices[key] = [key if key.startswith("~") and not value else f"{key}={value}" for value in values]
    if not varied:
        raise UserError(
            "-m runs combinations, but no override has several values. Type some, such as seed=0,1,2, or leave out -m."
        )
    return [list(combination) for combination in itertools.product(*choices.values())], varied


def with_progress(all_combinations: Sequence[list[str]]) -> Iterator[list[str]]:
    """Yield each combination and print the progress, because composing hundreds takes a minute."""
    total = len(all_combinations)
    if total > FEW:
        print(f"Composing {total} configurations.", flush=True)
    for number, combination in enumerate(all_combinations):
        if number and number % MANY == 0:
            print(f"{number}/{total} composed", flush=True)
        yield combination


def select_keys(keys: Container[str], overrides: Iterable[str]) -> list[str]:
    return [override for override in overrides if key_of(override) in keys]


def refuse_duplicates(all_overrides: Sequence[Sequence[str]], computations: Sequence[str]) -> None:
    """Reject combinations that are the same run, because they would count as two."""
    first: dict[str, Sequence[str]] = {}
    for overrides, computation in zip(all_overrides, computations):
        earlier = first.setdefault(computation, overrides)
        if earlier is not overrides:
            raise UserError(
                f"Two combinations of this grid are the same run: {' '.join(earlier)} and {' '.join(overrides)}. Leave"
                " one out. To measure the variation between runs, vary the seed: seed=0,1,2"
            )
