"""A grid, `python run.py -m …`: every combination of the values typed is a run, and each run has a process of its own.

The processes are forked from this one when it has imported everything, so that only the first run waits for that. The
grid's folder says which runs belong to it (see `minllm.manifest`): the same command goes on in it where it stopped.
"""

from __future__ import annotations

import gc
import importlib
import itertools
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
from omegaconf import DictConfig, OmegaConf, open_dict

from minllm.errors import UserError, printable
from minllm.explain import disk_sentence
from minllm.grid import grid_table, name_for_logger
from minllm.manifest import TRAINS, Grid, fingerprint, grid_for, is_whole, likeness, locked, make_ready
from minllm.runs import remove_if_empty
from minllm.sweep.processes import ENVIRONMENT
from minllm.units import duration
from minllm.words import key_of

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from minllm.children import Children

SWEEPER = "grid"
WARM = ("minllm.tasks.train", "minllm.model.mixers.attention", "numpy.random", "torch._dynamo")
"""What training imports, some of it late: once here, and not in each run."""

FEW, MANY = 20, 50
"""Combinations that are composed at once, and those after which it's said how far that is."""


def register() -> None:
    """Let Hydra take `GridSweeper` for run.py's grids; run.py chooses it."""
    Plugins.instance().register(GridSweeper)
    ConfigStore.instance().store(
        group="hydra/sweeper", name=SWEEPER, node=GridOptions, provider="minllm", replace=True
    )


@dataclass
class GridOptions:
    """`hydra.sweeper`."""

    _target_: str = "minllm.multirun.GridSweeper"
    n_jobs: int = 1


class GridEnded(Exception):
    """All runs of a grid have ended, or it was stopped; `code` is run.py's exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


@dataclass
class Combination:
    """A run to be: its words, what they compose to, its folder, and the words that differ between the grid's runs."""

    words: list[str]
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
        """Run the grid. It always ends with an exception: GridEnded, if nothing else.

        Raises:
            UserError: the words make no grid, or another process is training it.
            GridEnded: with run.py's exit code.
        """
        self.refuse_other_launchers()
        loader = self.context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        all_words, varied = combinations(overrides)
        composed = [loader.load_sweep_config(self.config, words) for words in counted(all_words)]
        identities = [fingerprint(one) for one in composed]
        refuse_twins([only(varied, words) for words in all_words], [likeness(one) for one in composed])
        trains = all(one.task.get("_target_") == TRAINS for one in composed)
        grid = grid_for(self.config, only(varied, arguments), identities, remembered=trains)
        runs = []
        for number, (words, one, identity) in enumerate(zip(all_words, composed, identities)):
            with open_dict(one):
                one.hydra.job.id, one.hydra.job.num = str(number), number
            grid.pin_latest(one)
            name = grid.name_of(identity, str(one.hydra.sweep.subdir))
            with open_dict(one):
                one.hydra.sweep.dir, one.hydra.sweep.subdir = str(grid.folder), name
            name_for_logger(one, grid.group, only(varied, words))
            runs.append(Combination(words, one, grid.folder / name, only(varied, words)))
        try:
            with locked(grid):
                grid.write()
                code = self.run_all(grid, runs)
        finally:
            grid.remove_if_empty()
        raise GridEnded(code)

    def refuse_other_launchers(self) -> None:
        launcher = self.config.hydra.runtime.choices.get("hydra/launcher")
        if launcher != "basic":
            raise UserError(
                f"run.py runs a grid on this machine, so it takes no hydra/launcher={launcher}. Several runs at a time:"
                " hydra.sweeper.n_jobs=2. On a cluster, use sweep.py with search=grid."
            )

    def run_all(self, grid: Grid, runs: Sequence[Combination]) -> int:
        """Run what isn't whole yet, and print the table. Return the exit code."""
        missing = [run for run in runs if not (grid.remembered and is_whole(run.folder))]
        kept = len(runs) - len(missing)
        if kept:
            print(already(grid, kept, len(runs)))
        codes = [0]
        if missing:
            from minllm.children import Children

            warm_up(missing)
            progress = Progress(len(runs), kept, self.n_jobs)
            with Children[Combination](self.n_jobs) as children:
                codes += self.run_missing(children, grid, missing, progress)
            if children.stopped_by:
                print(f"Stopped at {progress}. The same command goes on.", file=sys.stderr)
                return 128 + children.stopped_by
        if table := grid_table([(run.words, run.folder) for run in runs]):
            print(table)
        return 1 if 1 in codes else max(codes)

    def run_missing(
        self, children: Children[Combination], grid: Grid, missing: Sequence[Combination], progress: Progress
    ) -> list[int]:
        """Run each in a process of its own, and return their exit codes."""
        codes, waiting = [], list(missing)
        while children.running or (waiting and not children.stopped_by):
            while waiting and not children.is_full and not children.stopped_by:
                run = waiting.pop(0)
                print(f"{progress}: {' '.join(run.varied)}", flush=True)
                if trouble := why_not_ready(grid, run):
                    print(printable(f"{' '.join(run.words)}: {trouble}"), file=sys.stderr, flush=True)
                    progress.one_more(None)
                    codes.append(2)
                elif not self.started(children, run):
                    waiting.insert(0, run)  # there may be room once another has ended
                    break
            for run, end in children.ended():
                remove_if_empty(run.folder)
                print(end.out, end="", flush=True)
                print(end.err, end="", file=sys.stderr, flush=True)
                if end.broken_pipe:  # whoever read what is printed has had enough
                    raise BrokenPipeError
                if end.signal and not children.stopped_by:
                    print(f"{' '.join(run.words)}: its process was ended by {end.signal}.", file=sys.stderr)
                progress.one_more(end.seconds if end.code == 0 else None)
                codes.append(end.code)
        return codes

    def started(self, children: Children[Combination], run: Combination) -> bool:
        """Start a run's process; return False where the system has no room for one more beside the others.

        Raises:
            UserError: it has none for a single one.
        """
        try:
            children.start(run, self.work(run), device_of(run.composed))
        except OSError as error:
            if children.running:
                return False
            raise UserError(
                f"{' '.join(run.words)}: no process can be started ({error.strerror}). End other programs, or make room"
                f" in {tempfile.gettempdir()}. The same command goes on."
            ) from error
        return True

    def work(self, run: Combination) -> Callable[[], int]:
        """Return what a run's process does."""
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
    """How many of a grid's runs have ended, and how long the others will take."""

    total: int
    done: int
    n_jobs: int
    seconds: list[float] = field(default_factory=list)
    """Of the runs that were trained."""

    def one_more(self, seconds: float | None) -> None:
        """Count a run that has ended; one that failed says nothing of the time that others take."""
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


def why_not_ready(grid: Grid, run: Combination) -> UserError | None:
    """Empty the folder of a run that begins again; return what is in the way, if anything."""
    try:
        if grid.remembered:
            make_ready(run.folder)
    except UserError as error:
        return error
    except OSError as error:
        return UserError(disk_sentence(error))
    return None


def already(grid: Grid, kept: int, total: int) -> str:
    if kept < total:
        return f"{kept} of {total} runs are in {grid.folder} already; going on with the others."
    return (
        f"All {total} runs of this grid are in {grid.folder} already, so nothing was trained. To train them again, name"
        " another folder: hydra.sweep.dir=<folder>"
    )


def warm_up(runs: Sequence[Combination]) -> None:
    """Import here what each run would import."""
    os.environ.update(ENVIRONMENT)
    for name in WARM:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collecting garbage would copy pages that runs share


def device_of(composed: DictConfig) -> str | None:
    device = OmegaConf.select(composed, "train.device", throw_on_missing=False)
    return device if isinstance(device, str) else None


# ---- combinations --------------------------------------------------------------------------------


def combinations(overrides: Sequence[Override]) -> tuple[list[list[str]], set[str]]:
    """Return the words of each combination, the last word varying fastest, and the keys of those that are varied.

    Raises:
        UserError: nothing is varied, a choice is empty, or a key is given twice.
    """
    choices: dict[str, list[str]] = {}
    varied = set()
    for override in overrides:
        key = override.get_key_element()
        if key_of(key) in varied:
            raise UserError(
                f"{key_of(key)} is given again after it had several values. Leave one of the two out."
            )
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        else:
            if not override.is_discrete_sweep():
                raise UserError(
                    f"{override.input_line} is a range, and run.py -m runs the values that are typed, such as"
                    f" {key}=0.1,0.2. sweep.py searches ranges."
                )
            values = list(override.sweep_string_iterator())
            if not values:
                raise UserError(
                    f"{override.input_line} has no values, so there is nothing to run. Name some: {key}=<value>,<value>"
                )
            varied.add(key_of(key))
        choices[key] = [key if key.startswith("~") and not value else f"{key}={value}" for value in values]
    if not varied:
        raise UserError(
            "-m runs combinations, and no word has several values. Name some, such as seed=0,1,2, or leave out -m."
        )
    return [list(words) for words in itertools.product(*choices.values())], varied


def counted(all_words: Sequence[list[str]]) -> Iterator[list[str]]:
    """Yield each combination, and say how many are composed: hundreds take a minute before the first one runs."""
    total = len(all_words)
    if total > FEW:
        print(f"Composing {total} configurations.", flush=True)
    for number, words in enumerate(all_words):
        if number and number % MANY == 0:
            print(f"{number}/{total} composed", flush=True)
        yield words


def only(keys: Container[str], words: Iterable[str]) -> list[str]:
    return [word for word in words if key_of(word) in keys]


def refuse_twins(all_words: Sequence[Sequence[str]], likenesses: Sequence[str]) -> None:
    """Raise UserError if two combinations are the same run, which would count as two."""
    first: dict[str, Sequence[str]] = {}
    for words, alike in zip(all_words, likenesses):
        twin = first.setdefault(alike, words)
        if twin is not words:
            raise UserError(
                f"Two combinations of this grid are the same run: {' '.join(twin)} and {' '.join(words)}. Leave"
                " one out. To see how much is chance, vary the seed: seed=0,1,2"
            )
