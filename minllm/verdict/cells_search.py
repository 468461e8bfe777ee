"""Arms that are tuned and trained on each of several data: what a profile and a ranking have in common.

An arm on one of the data is a search with its own folder: first the tuning, then new seeds with what was chosen.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from minllm.errors import UserError
from minllm.files.names import short
from minllm.page import units
from minllm.study.arms import identity
from minllm.study.trust import refuse_broken_arm
from minllm.study.tuning import Tuning
from minllm.sweep.plugin import PruningSweeper
from minllm.sweep.report.trials import counted_noun
from minllm.sweep.search import Search, run_together
from minllm.sweep.spec import command_line
from minllm.verdict.arms_search import ArmsSearch
from minllm.verdict.cells_protocol import CellsProtocol
from minllm.verdict.jobs import jobs_for
from minllm.verdict.phases import QUEUED, phase
from minllm.verdict.protocol import FIRST_TUNING_SEED, arms_in, refuse_identical_arms
from minllm.verdict.tuning import NothingToCompare, tune


class CellsSearch(ArmsSearch):
    """The arms, the data, and the searches that tune and train each arm on each of them."""

    protocol: CellsProtocol
    evaluations: ClassVar[int]
    """How often a run is evaluated, unless the command line says otherwise."""
    names: Mapping[str, str]
    """What was typed for each arm, by a name that can be a folder's."""
    rungs: Mapping[str, Sequence[str]]
    """The overrides of each of the data, by its name."""
    plans: Mapping[tuple[str, str], Any]
    """What is tried, by the names of an arm and of the data."""

    def __init__(self, sweeper: PruningSweeper, overrides: Sequence[str]):
        super().__init__(sweeper, overrides)
        self.typed = list(overrides)

    def named_arms(self, arms: Mapping[str, list[str]], key: str) -> dict[str, list[str]]:
        """Return the overrides of each arm, by a name that can be a folder's; `names` has what was typed."""
        self.names = {folder_name(name): name for name in arms}
        if len(self.names) < len(arms):
            raise UserError(
                f"Two of the {key} {', '.join(arms)} have too similar names: write one differently."
            )
        return arms_in(dict(zip(self.names, arms.values())), self.protocol)

    def compose_cells(self, sized: bool) -> None:
        """Compose each arm on each of the data, and check each arm once. UserError if one can't be compared.

        Args:
            sized: whether the arms have been given the same size.
        """
        self.cfgs: dict[tuple[str, str], DictConfig] = {
            (arm, name): self.composed(arm, rung) for name, rung in self.rungs.items() for arm in self.arms
        }
        of_first = {arm: self.cfgs[arm, next(iter(self.rungs))] for arm in self.arms}
        refuse_identical_arms({self.names[arm]: cfg for arm, cfg in of_first.items()}, sized, prefix="")
        self.refuse_equal_data()
        if "train.check=false" not in self.typed:  # runs don't check again
            for arm, cfg in of_first.items():
                refuse_broken_arm(self.names[arm], cfg)
        if self.sweeper.chooses_jobs:
            self.sweeper.n_jobs = jobs_for(self.config, next(iter(of_first.values())))

    def refuse_equal_data(self) -> None:
        """Raise UserError if an arm is the same on two of the data, or two of them have the same folder."""
        for arm in self.arms:
            known: dict[tuple[Any, ...], str] = {}
            for name in self.rungs:
                other = known.setdefault(identity(self.cfgs[arm, name]), name)
                if other != name:
                    raise UserError(
                        f"{self.names[arm]} would be trained on the same data twice, as {other} and as {name}: leave"
                        f" one of them out. If {self.names[arm]} itself sets the data, leave that out."
                    )
        if len({self.place(*key) for key in self.cfgs}) < len(self.cfgs):
            raise UserError(f"Two of {', '.join(self.rungs)} have too similar names: write one differently.")

    def place(self, arm: str, name: str) -> str:
        """Return the name of the folder of an arm on one of the data."""
        return f"seeds-{folder_name(name)}-{arm}"

    def sweeps(self, plan: Any) -> list[str]:
        """Return sweeps in Hydra's grammar that contain everything that a plan may try, and all seeds."""
        raise NotImplementedError

    def trained_on(
        self, name: str, score: Callable[[FrozenTrial], float | None] = lambda trial: trial.value
    ) -> dict[str, tuple[Tuning, list[FrozenTrial]]]:
        """Tune all arms on one of the data, and train their seeds while there is time.

        Returns the tuning of each arm, and its trials of new seeds that have ended, in the order of their seeds;
        nothing if time ran out during the tuning.

        Args:
            score: returns a number that is lower for better trials.
        """
        with contextlib.ExitStack() as stack:
            searches = {arm: stack.enter_context(self.opened(arm, name)) for arm in self.arms}
            plans = {arm: self.plans[arm, name] for arm in self.arms}
            try:
                tunings = tune(plans, searches, self.sweeper.n_jobs, score)
            except NothingToCompare:
                return {}
            for arm, search in searches.items():
                values = tunings[arm].chosen
                search.queue([{**values, "seed": seed} for seed in range(self.protocol.seeds)])
            run_together(list(searches.values()), self.sweeper.n_jobs)
            return {
                arm: (tunings[arm], with_new_seeds(tunings[arm], search.trials()))
                for arm, search in searches.items()
            }

    def opened(self, arm: str, name: str) -> contextlib.AbstractContextManager[Search]:
        """Open the search that tunes and trains an arm on one of the data."""
        plan = self.plans[arm, name]
        logger = self.logger_overrides(arm, f"-{folder_name(name)}")
        overrides = [*self.overrides_of(arm, self.rungs[name]), *self.sweeps(plan), *logger]
        config = self.config_of(self.place(arm, name), keep="none", evaluations=self.evaluations)
        runs = plan.most_runs + self.protocol.seeds
        return phase(self.sweeper, config, overrides, runs, QUEUED, self.server)

    def display_name(self, name: str) -> str:
        return self.names[name]

    def command(self) -> str:
        """Return the command line with secrets removed."""
        return command_line(self.config.hydra, self.typed)


def with_new_seeds(tuning: Tuning, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return those trials that have ended, with the chosen values and seeds that aren't for tuning."""
    own = [
        trial
        for trial in trials
        if trial.state.is_finished()
        and trial.params["seed"] < FIRST_TUNING_SEED
        and all(trial.params[key] == value for key, value in tuning.chosen.items())
    ]
    return sorted(own, key=lambda trial: trial.params["seed"])


def rest_of(noun: str, done: int, planned: int, seconds: float) -> str:
    """Return a sentence on how long the data that are left will take at this pace; "" if none are left.

    Args:
        noun: for one of the data.
        seconds: what those that are done have taken.
    """
    left = planned - done
    if not left:
        return ""
    need = "needs" if left == 1 else "need"
    return f" {counted_noun(left, f'more {noun}')} {need} about {units.duration(seconds / done * left)}."


def folder_name(name: str) -> str:
    return short(re.sub(r"[^\w.]+", "-", name).strip("-."))
