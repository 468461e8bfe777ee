"""`python sweep.py search=ladder 'arms.a=[norm=pre]' 'arms.b=[norm=sandwich]' 'ladder.params=[2e5,4e5,8e5,1.6e6]'`.

1. Time: short runs at the smallest and the largest rung, from which the time of everything is predicted.
2. Tuning: each arm's learning rate at the lowest rungs, and a line through these rates for all rungs.
3. Pairs: the arms train with the same new seeds at every rung, one pair at each before the next, the largest first.
4. Check: if asked for, the difference at one rung above is predicted, written to disk, and then measured.
5. Report.

All of these are searches with their own folders, so an interrupted ladder continues with the same command.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, read_write
from optuna.trial import FrozenTrial

from minllm.errors import UserError, printable
from minllm.model.size import TARGETS
from minllm.schema.building import build
from minllm.schema.checking import allowed_packages, check_node
from minllm.schema.overrides import key_of
from minllm.study import recorded
from minllm.study.reading import read_arms
from minllm.study.report import print_failure, sentences, write_and_print
from minllm.study.scaling.ladders import LEAST_PAIRS
from minllm.study.scaling.rates import RateLine, line_through, optimum_of
from minllm.study.selection import LADDER
from minllm.study.trust import refuse_broken_arm
from minllm.study.tuning import RATE, Tuning
from minllm.sweep.launchers import shared_server
from minllm.sweep.plugin import PruningSweeper
from minllm.sweep.report.trials import is_complete, seconds_of
from minllm.sweep.search import Search, run_all_until
from minllm.sweep.space import spelled
from minllm.verdict.arms_search import PAIR_EVALUATIONS, TUNING_EVALUATIONS, ArmsSearch
from minllm.verdict.jobs import jobs_for
from minllm.verdict.ladder_comparing import checked, compare_rungs
from minllm.verdict.ladder_protocol import LadderProtocol, Rungs
from minllm.verdict.ladder_rungs import RungPlan, rungs_of
from minllm.verdict.ladder_time import (
    Pace,
    Timed,
    Work,
    refuse_too_long,
    time_lines,
    total_seconds,
    tuning_runs,
    work_of,
)
from minllm.verdict.metric import refuse_early_ends
from minllm.verdict.phases import EACH_ONCE, QUEUED, phase
from minllm.verdict.protocol import FIRST_TUNING_SEED, refuse_identical_arms, refuse_same_results
from minllm.verdict.rate_search import RateSearch
from minllm.verdict.tuning import CONTINUE, NothingToCompare, plan_of, space_of, tune

Tunings = Mapping[tuple[str, int], Tuning]
"""By the names of arms and the numbers of rungs."""


def climb(sweeper: PruningSweeper, overrides: Sequence[str]) -> bool | None:
    """Train a ladder, and write the report; return whether it has an answer, or None if dry.

    Args:
        sweeper: the sweeper that Hydra instantiated; it holds the rest of the configuration.
        overrides: the command line's overrides, without Hydra's own.

    Raises:
        UserError: an arm can't be built at a rung, its runs fail, or the time can't suffice.
        RepeatedCrashes: too many trials crashed in a row.
    """
    search = LadderSearch(sweeper, overrides)
    if not search.begin():
        return None
    try:
        with shared_server(search.config, sweeper.n_jobs) as search.server:
            paces = search.measure_paces()
            print(printable(search.timed_plan(paces)), flush=True)
            tunings = search.tune(paces)
            rates = search.rates_of(tunings)
            done = search.train_pairs([rung for rung in search.rungs if not rung.is_check], rates, paces)
            comparison = compare_rungs(search, tunings, rates)
            if not done:
                print(
                    f"Time ran out before every rung had {search.settings.pairs} pairs. {CONTINUE}",
                    flush=True,
                )
            elif search.settings.check:
                comparison = checked(
                    search, comparison, lambda rung: search.train_pairs([rung], rates, paces)
                )
    except NothingToCompare as end:
        print_failure(f"There is no answer yet, because {end.reason}. {end.advice}")
        return False
    print()
    readings = read_arms(comparison, search.config, search.protocol.prompts, search.protocol.stories)
    write_and_print(comparison, search.folder, readings)
    return comparison.is_answered


class LadderSearch(ArmsSearch):
    """The arms and rungs of a ladder, and the searches that train them."""

    file = LADDER
    protocol: LadderProtocol

    def __init__(self, sweeper: PruningSweeper, overrides: Sequence[str]):
        check_node(sweeper.config.ladder, "ladder", allowed_packages(sweeper.config))
        self.settings: Rungs = build(sweeper.config.ladder)
        super().__init__(sweeper, overrides)
        refuse_own_size([*self.overrides, *itertools.chain(*self.arms.values())])
        self.precision = self.precision_override()
        composed = functools.cache(lambda name, overrides: self.composed(name, overrides))
        self.rungs = rungs_of(self.settings, list(self.arms), composed)
        lowest, *_, highest = self.rungs
        cfgs = {name: composed(name, lowest.overrides) for name in self.arms}
        refuse_identical_arms(cfgs, sized=True)
        refuse_early_ends(self.metric, cfgs.values())
        self.transferred = {name for name, cfg in cfgs.items() if covers_sizes(cfg)}
        for name, cfg in cfgs.items():  # before anything runs
            if build(cfg.train).check:
                refuse_broken_arm(name, cfg)
        if sweeper.chooses_jobs:
            largest = max(highest.plans, key=lambda plan: plan.params)
            sweeper.n_jobs = jobs_for(self.config, composed(next(iter(self.arms)), largest.overrides))
        self.plans: dict[tuple[str, int], RateSearch] = {
            (name, rung.number): plan_of(name, cfgs[name], self.protocol)
            for rung in self.rungs
            if rung.is_tuned and self.protocol.is_tuned
            for name in self.arms
        }

    def plan(self) -> str:
        """Return a description of what will be run."""
        lines = [f"{name}: {' '.join(overrides) or 'no overrides'}" for name, overrides in self.arms.items()]
        for rung in self.rungs:
            training = next(iter(rung.arms.values()))
            kind = " (check)" if rung.is_check else " (tuned)" if rung.number in self.tuned else ""
            lines.append(
                f"Rung {rung.number}: {training.params:,} parameters, {training.tokens:,} tokens,"
                f" {training.flops:.3g} FLOPs for each run{kind}."
            )
            lines += [f"  {described(plan)}." for plan in rung.others]
        for (name, number), plan in self.plans.items():
            if number == 1:
                lines.append(f"{name} tries {plan.description}.")
        lines.append(f"Pairs: seeds 0 to {self.settings.pairs - 1} at each rung.")
        return "\n".join(lines)

    @property
    def tuned(self) -> set[int]:
        """The numbers of the rungs at which learning rates are tuned."""
        return {number for _, number in self.plans}

    def protocol_data(self) -> dict[str, Any]:
        rungs = {f"ladder.{key}": value for key, value in asdict(self.settings).items()}
        return {**super().protocol_data(), **rungs}

    # ---- time ------------------------------------------------------------------------------------

    def measure_paces(self) -> dict[str, Pace]:
        """Train short runs of each arm at the smallest and the largest rung, and return how fast they were.

        Raises:
            UserError: such a run failed.
        """
        ends = self.rungs[0], self.rungs[-1]
        with contextlib.ExitStack() as stack:
            searches = {
                (name, rung.number): stack.enter_context(self.opened_pace(name, rung))
                for rung in ends[::-1]
                for name in self.arms
            }
            run_all_until(list(searches.values()), 1, self.sweeper.n_jobs)
            timed = {key: self.timed(*key, search.trials()) for key, search in searches.items()}
        return {name: Pace(*(timed[name, rung.number] for rung in ends)) for name in self.arms}

    def opened_pace(self, name: str, rung: RungPlan) -> contextlib.AbstractContextManager[Search]:
        seeds = f"seed=range({FIRST_TUNING_SEED},{FIRST_TUNING_SEED + 2})"
        length = [f"train.steps={rung.arms[name].short_steps}", "train.tokens=null"]
        overrides = [*self.overrides_of(name, rung.overrides), *length, seeds]
        folder = f"time-{name}-{rung.arms[name].params}"
        config = self.config_of(folder, keep="none", evaluations=PAIR_EVALUATIONS)
        with read_write(config.hydra):
            config.sweep.minutes = None  # without these runs it isn't known whether the minutes suffice
        return phase(self.sweeper, config, overrides, 1, EACH_ONCE, self.server)

    def timed(self, name: str, number: int, trials: Sequence[FrozenTrial]) -> Timed:
        rung = self.rungs[number - 1]
        (trial,) = trials
        if not is_complete(trial):
            raise UserError(
                f"Arm {name} can't be trained at {rung.label} parameters: {trial.user_attrs.get('text', 'it crashed.')}"
            )
        folder = Path(trial.user_attrs["run"])
        try:
            summary = recorded.read_summary(folder)
            recorded.check(summary, {"tokens": int, "steps": int, "tokens_per_second": float}, "summary.json")
        except recorded.Damaged as error:
            raise UserError(f"In {folder}: {error} Start another ladder: sweep.name=<name>.") from error
        training = summary["tokens"] / summary["tokens_per_second"]
        other = max(0.0, (seconds_of(trial) or 0.0) - training)
        return Timed(rung.arms[name].flops_per_step, training / summary["steps"], other)

    def timed_plan(self, paces: Mapping[str, Pace]) -> str:
        """Return what is left to be trained, with predicted times. UserError if that doesn't fit into the minutes."""
        works = self.work(paces, self.settings.pairs)
        n_jobs = self.sweeper.n_jobs
        if (minutes := self.config.sweep.minutes) is not None:
            fewer = range(self.settings.pairs - 1, 0, -1)
            alternatives = {
                f"ladder.pairs={pairs}": total_seconds(self.work(paces, pairs), n_jobs)
                for pairs in fewer
                if pairs * len(self.settings.rungs) >= LEAST_PAIRS
            }
            refuse_too_long(total_seconds(works, n_jobs), minutes, alternatives)
        return "\n".join(time_lines(works, n_jobs))

    def work(self, paces: Mapping[str, Pace], pairs: int) -> list[Work]:
        """Return what is still to be trained."""
        works = []
        for rung in self.rungs:
            tuning = {
                name: self.left(
                    f"tune-{name}-{rung.number}",
                    tuning_runs(len(plan.planned), len(plan.seeds), plan.most_runs),
                )
                for name in self.arms
                if (plan := self.plans.get((name, rung.number)))
            }
            if tuning:
                works.append(work_of(rung, "tuning", tuning, paces))
            for plan in rung.plans:
                left = {name: self.left(f"seeds-{name}-{plan.key}", pairs) for name in self.arms}
                works.append(work_of(plan, "branching" if plan.is_branch else "paired", left, paces))
        return works

    def left(self, name_of_phase: str, runs: int) -> int:
        """Return how many of so many runs aren't finished yet."""
        done = sum(1 for _ in (self.folder / name_of_phase).glob("*/summary.json"))
        return max(0, runs - done)

    # ---- the steps -------------------------------------------------------------------------------

    def tune(self, paces: Mapping[str, Pace]) -> dict[tuple[str, int], Tuning]:
        """Tune each arm at the lowest rungs, and return what was tried and chosen."""
        names = {key: f"{key[0]} at {self.rungs[key[1] - 1].label}" for key in self.plans}
        largest_first = sorted(self.plans, key=lambda key: -key[1])
        with contextlib.ExitStack() as stack:
            searches = {
                names[key]: stack.enter_context(self.opened_tuning(*key, paces)) for key in largest_first
            }
            tuned = tune(
                {names[key]: self.plans[key] for key in largest_first}, searches, self.sweeper.n_jobs
            )
        tunings = {key: tuned[names[key]] for key in self.plans}
        for key, tuning in tunings.items():
            print(printable(f"{names[key]} parameters: {sentences.tuned(tuning)}"), flush=True)
        for rung in self.rungs:
            refuse_same_results(
                {name: tunings[name, rung.number] for name in self.arms if (name, rung.number) in tunings}
            )
        return tunings

    def rates_of(self, tunings: Tunings) -> dict[str, RateLine]:
        """Return the learning rate of each arm at every rung; none without tuning."""
        lines = {}
        for name in self.arms:
            optima = [
                optimum_of(rung.arms[name].params, tunings[name, rung.number])
                for rung in self.rungs
                if (name, rung.number) in tunings
            ]
            if optima:
                lines[name] = line_through(optima, name in self.transferred)
                print(
                    printable(f"{name}: the learning rate of its pairs is {lines[name].sentence}."),
                    flush=True,
                )
        return lines

    def train_pairs(
        self, rungs: Sequence[RungPlan], rates: Mapping[str, RateLine], paces: Mapping[str, Pace]
    ) -> bool:
        """Train pairs at each rung, one at each before the next, the largest rung first; return whether all are done.

        Which arm begins alternates, as in a verdict. Runs that branch off others begin once those have ended.
        """
        plans = [plan for rung in reversed(rungs) for plan in rung.plans]
        with contextlib.ExitStack() as stack:
            searches = {
                (name, plan.key): stack.enter_context(self.opened_seeds(name, plan, rates, paces))
                for plan in plans
                for name in self.arms
            }

            def ended(name: str, key: str) -> int:
                return sum(trial.state.is_finished() for trial in searches[name, key].trials())

            for pairs in range(1, self.settings.pairs + 1):
                names = list(self.arms)[:: 1 if pairs % 2 else -1]
                for are_branches in (False, True):
                    order = [
                        searches[name, plan.key]
                        for plan in plans
                        for name in names
                        if plan.is_branch == are_branches
                        and (not are_branches or ended(name, str(plan.number)) >= pairs)
                    ]
                    run_all_until(order, pairs, self.sweeper.n_jobs)
            return min(ended(*of_search) for of_search in searches) >= self.settings.pairs

    def opened_tuning(
        self, name: str, number: int, paces: Mapping[str, Pace]
    ) -> contextlib.AbstractContextManager[Search]:
        """Open the search that runs an arm's queued tuning runs at a rung."""
        rung, plan = self.rungs[number - 1], self.plans[name, number]
        overrides = [
            *self.overrides_of(name, rung.overrides),
            *space_of(plan),
            *self.logger_overrides(name, "-tuning"),
        ]
        config = self.config_of(f"tune-{name}-{number}", keep="none", evaluations=TUNING_EVALUATIONS)
        self.end_before(config, paces[name].seconds(rung.arms[name]))
        return phase(self.sweeper, config, overrides, plan.most_runs, QUEUED, self.server)

    def opened_seeds(
        self, name: str, rung: RungPlan, rates: Mapping[str, RateLine], paces: Mapping[str, Pace]
    ) -> contextlib.AbstractContextManager[Search]:
        """Open the search that trains an arm's seeds at a rung, with the learning rate of its line."""
        training = rung.arms[name]
        overrides = [
            *self.overrides_of(name, rung.overrides),
            *([f"{RATE}={rates[name].at(training.params)!r}"] if name in rates else []),
            f"seed=range(0,{FIRST_TUNING_SEED})",
            "train.keep_checkpoints=1",
            *self.branching(name, rung),
            *self.logger_overrides(name),
        ]
        config = self.config_of(f"seeds-{name}-{rung.key}", keep="all", evaluations=PAIR_EVALUATIONS)
        self.end_before(config, paces[name].seconds(training))
        return phase(self.sweeper, config, overrides, self.settings.pairs, EACH_ONCE, self.server)

    def branching(self, name: str, rung: RungPlan) -> list[str]:
        """Return the overrides by which shorter runs branch off longer ones."""
        if rung.is_branch:
            return [f"branch_from={spelled(str(self.folder / f'seeds-{name}-{rung.number}'))}"]
        tokens = ",".join(str(other.tokens) for other in rung.others if other.is_branch)
        return [f"train.branches=[{tokens}]"] if tokens else []

    def end_before(self, config: DictConfig, seconds: float) -> None:
        """Have a search start no run that would end after the minutes."""
        left = self.deadline - time.monotonic() - seconds
        if math.isfinite(left):
            with read_write(config.hydra):
                config.sweep.minutes = max(left, 1e-9) / 60


def described(plan: RungPlan) -> str:
    """Return what a further plan of a rung trains."""
    if plan.is_branch:
        return f"From these, by a decay each: {plan.tokens:,} tokens"
    training = next(iter(plan.arms.values()))
    return f"{training.params:,} parameters, {training.tokens:,} tokens, {training.flops:.3g} FLOPs"


def refuse_own_size(overrides: Sequence[str]) -> None:
    for override in overrides:
        if key_of(override) in {f"size.{target}" for target in TARGETS}:
            raise UserError(
                f"{override} can't be combined with a ladder, whose rungs are sizes: leave it out, or put it into"
                " ladder.params."
            )


def covers_sizes(cfg: DictConfig) -> bool:
    """Whether `model.transfer` covers what grows from rung to rung."""
    return cfg.model.transfer == "completep" or (cfg.model.transfer == "mup" and cfg.size.by != "layers")
