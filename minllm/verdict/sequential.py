"""`python sweep.py search=verdict 'arms.a=[model/attn=gqa]' 'arms.b=[model/attn=differential]'`: which arm is better.

1. Size: each arm gets as many parameters as the first.
2. Tuning: each arm tries the same multiples of its learning rate, or the same random draws of several settings, on
   seeds that the verdict doesn't use.
3. Pairs: the arms train with the same new seeds until a look at the results settles the verdict or time runs out.
4. Report.

The tuning and the seeds of each arm are separate searches with their own folders, so an interrupted verdict continues
with the same command. The looks are fixed in advance, and share the significance level.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial

from minllm.errors import printable
from minllm.files.atomic import refuse_links_at_top
from minllm.schema.building import build
from minllm.study.comparison import ALL, ALPHA, Comparison, undecided
from minllm.study.reading import read_arms
from minllm.study.report import print_without_report, sentences, write_and_print
from minllm.study.selection import VERDICT
from minllm.study.statistics import least_pairs
from minllm.study.trust import refuse_broken_arm
from minllm.study.tuning import Tuning
from minllm.sweep.launchers import shared_server
from minllm.sweep.plugin import PruningSweeper
from minllm.sweep.report.trials import is_complete, seconds_of
from minllm.sweep.search import Search, run_all_until
from minllm.verdict.arms_search import PAIR_EVALUATIONS, TUNING_EVALUATIONS, ArmsSearch
from minllm.verdict.champion import set_champion
from minllm.verdict.comparing import compare_pairs, without_runs
from minllm.verdict.entry import entry_for_search, record_verdict, unreached_entry
from minllm.verdict.grading import chosen_grader, graded
from minllm.verdict.jobs import jobs_for
from minllm.verdict.ledger import Ledger
from minllm.verdict.metric import metric_of
from minllm.verdict.phases import EACH_ONCE, QUEUED, phase
from minllm.verdict.protocol import (
    FIRST_TUNING_SEED,
    Protocol,
    listed,
    refuse_identical_arms,
    refuse_same_results,
)
from minllm.verdict.tuning import (
    CONTINUE,
    NothingToCompare,
    Plan,
    plan_lines,
    plan_of,
    refuse_extremes,
    space_of,
    tune,
)

ITSELF = ", or compare a single arm with itself: search.aa=true"


def reach_verdict(sweeper: PruningSweeper, overrides: Sequence[str]) -> Comparison | None:
    """Size the arms, tune them, train them in pairs, and write the report; return the comparison, or None if dry.

    If time runs out before every arm has a run, all contests are inconclusive, and no report is written.

    Args:
        sweeper: the sweeper that Hydra instantiated; it holds the rest of the configuration.
        overrides: the command line's overrides, without Hydra's own.

    Raises:
        UserError: an arm can't be built, or its runs fail.
        RepeatedCrashes: too many trials crashed in a row.
    """
    search = VerdictSearch(sweeper, overrides)
    print(printable(search.plan()), flush=True)
    if search.config.sweep.dry_run:
        return None
    refuse_links_at_top(search.folder, appended=())
    search.save_protocol()
    if search.entry.announcement:
        print(search.entry.announcement, flush=True)
    try:
        with shared_server(search.config, sweeper.n_jobs) as search.server:
            comparison = search.train_pairs(search.tune())
    except NothingToCompare as end:
        comparison = without_runs(search, end)
        print_without_report(comparison, unreached_entry(search))
        return comparison
    protocol = search.protocol
    print()
    entry = record_verdict(search, comparison)
    readings = read_arms(comparison, search.config, protocol.prompts, protocol.stories)
    write_and_print(comparison, search.folder, readings, entry, graded(search, comparison))
    return comparison


class VerdictSearch(ArmsSearch):
    """The arms of a verdict, and the searches that train them."""

    file = VERDICT
    protocol: Protocol

    def __init__(self, sweeper: PruningSweeper, overrides: Sequence[str]):
        super().__init__(sweeper, overrides)
        self.metric = self.protocol.metric
        self.seconds: dict[str, list[float]] = {}
        """Durations of each search's runs."""
        self.ledger, self.entry = Ledger(), None
        default = self.composed("a") if self.protocol.champion else None
        self.kind = None if default is None else set_champion(self, default, overrides)
        self.precision = self.precision_override()
        bases = {name: self.composed(name) for name in self.arms}
        refuse_identical_arms(bases, instead=ITSELF)
        self.measure = metric_of(self.metric, bases)
        first = default or next(iter(bases.values()))
        if sweeper.chooses_jobs:
            sweeper.n_jobs = jobs_for(self.config, first)
        self.plans = {
            name: plan_of(name, cfg, self.protocol, self.measure.perfect)
            for name, cfg in bases.items()
            if self.protocol.is_tuned
        }
        self.size = self.size_override(first)
        self.cfgs = {name: self.composed(name) for name in self.arms} if self.size else bases
        if self.size:
            refuse_identical_arms(self.cfgs, sized=True, instead=ITSELF)
        self.grader = chosen_grader(self.config, self.cfgs.values(), self.overrides)
        for name, cfg in self.cfgs.items():  # before anything runs
            if build(cfg.train).check:
                refuse_broken_arm(name, cfg)
        for name, plan in self.plans.items():
            refuse_extremes(name, plan, lambda sweeps, name=name: self.spec(name, sweeps))

    def plan(self) -> str:
        """Return a description of what will be run."""
        protocol = self.protocol
        lines = [f"{name}: {' '.join(overrides) or 'no overrides'}" for name, overrides in self.arms.items()]
        if sizes := [override for override in (*self.size, *self.overrides) if override.startswith("size.")]:
            lines.append(f"All arms have the same size: {' '.join(sizes)}.")
        if self.measure.is_share:
            lines.append(
                f"Compared: {self.measure.measured}; a difference of up to {protocol.margin:g} is too small to matter."
            )
        lines += plan_lines(self.plans)
        seeds = ", ".join(map(str, protocol.seeds_of(3)[:3]))
        lines.append(f"Pairs: seeds {seeds}, …; the results are tested after {listed(protocol.looks)} pairs.")
        contests = math.comb(len(self.arms), 2) if protocol.baseline == ALL else len(self.arms) - 1
        least = least_pairs(ALPHA, protocol.looks, contests)
        if protocol.looks[0] < least:
            lines.append(f"With these looks, no arm can be called better or worse before {least} pairs.")
        return "\n".join(lines)

    # ---- the steps -------------------------------------------------------------------------------

    def tune(self) -> dict[str, Tuning]:
        """Tune each arm on the tuning seeds, and return what was tried and chosen."""
        with contextlib.ExitStack() as stack:
            searches = {
                name: stack.enter_context(self.opened_tuning(name, plan)) for name, plan in self.plans.items()
            }
            tuned = tune(self.plans, searches, self.sweeper.n_jobs, self.score)
            self.seconds |= {
                f"tune-{name}": seconds_of_runs(search.trials()) for name, search in searches.items()
            }
        for name, search in tuned.items():
            print(f"{name}: {sentences.tuned(search)}", flush=True)
        if not self.measure.is_share:
            refuse_same_results(tuned)
        return tuned

    def score(self, trial: FrozenTrial) -> float | None:
        """Return what a tuning run is judged by."""
        return trial.value if trial.value is None else max(trial.value, self.measure.perfect)

    def train_pairs(self, tuning: Mapping[str, Tuning]) -> Comparison:
        """Train pairs of seeds until a look settles every comparison, or looks or time run out.

        Returns the comparison at the last look reached, or an undecided one before the first look. An arm whose
        contests are all settled isn't trained any further.
        """
        done, comparison = 0, None
        with contextlib.ExitStack() as stack:
            searches = {name: stack.enter_context(self.opened_seeds(name, tuning)) for name in self.arms}
            for look in self.protocol.looks:
                done = self.train_up_to(look, searches)
                if done < look:
                    break
                comparison = compare_pairs(self, tuning, look)
                print(f"After {look} pairs: {comparison.headline} {comparison.settling}".rstrip(), flush=True)
                if comparison.is_settled:
                    return comparison
                needed = self.still_needed(comparison)
                searches = {name: search for name, search in searches.items() if name in needed}
        if comparison is None:
            why = f"Time ran out before the first look at {self.protocol.looks[0]} pairs. {CONTINUE}"
            return undecided(compare_pairs(self, tuning, done), why)
        return comparison

    def still_needed(self, comparison: Comparison) -> set[str]:
        """Return the names of the arms that an unsettled contest needs."""
        arms = [
            arm
            for result in comparison.contests
            if not result.is_settled
            for arm in (result.arm, result.baseline)
        ]
        arms += [result.arm for result in comparison.noise if not result.is_settled]
        called = {arm.name for arm in arms}
        return {name for name in self.arms if self.display_name(name) in called}

    def train_up_to(self, look: int, searches: Mapping[str, Search]) -> int:
        """Train at least `look` pairs while there is time, and return the number of finished pairs.

        The arms train side by side in turns, each of as few pairs as give all processes a run, so a turn may end after
        the look, which then uses only the first ones. Which arm begins alternates, so that other load on the machine
        slows all of them alike and their tokens per second stay comparable.
        """
        n_jobs, last = self.sweeper.n_jobs, self.protocol.looks[-1]
        pairs = n_jobs // math.gcd(n_jobs, len(searches))
        done = self.finished_pairs({name: search.trials() for name, search in searches.items()})
        while done < look and (more := self.pairs_in_time(len(searches))):
            wanted = done + int(min(last - done, more, pairs))
            order = list(searches.values())[:: 1 if done // pairs % 2 == 0 else -1]
            run_all_until(order, wanted * self.protocol.runs_per_pair, n_jobs)
            done = self.finished_pairs({name: search.trials() for name, search in searches.items()})
            if done < wanted:  # time ran out during this turn
                break
        return done

    def finished_pairs(self, trials: Mapping[str, Sequence[FrozenTrial]]) -> int:
        """Return the number of finished pairs among the trials of each arm, and note how long these took."""
        self.seconds |= {f"seeds-{name}": seconds_of_runs(own) for name, own in trials.items()}
        return self.protocol.pairs_in(trials.values())

    def opened_seeds(
        self, name: str, tuning: Mapping[str, Tuning]
    ) -> contextlib.AbstractContextManager[Search]:
        """Open the search that trains an arm's seeds at its learning rate."""
        overrides = [
            *(tuning[name].overrides if name in tuning else ()),
            f"seed=range({self.protocol.first_seed},{FIRST_TUNING_SEED})",
            "train.keep_checkpoints=1",
            *self.logger_overrides(name),
        ]
        seeds = self.protocol.looks[-1] * self.protocol.runs_per_pair
        return self.opened(f"seeds-{name}", name, overrides, seeds, keep="all")

    def pairs_in_time(self, arms: int) -> float:
        """Return how many more pairs there is time for, by the mean duration of a run; `n_jobs` before the first."""
        left = self.deadline - time.monotonic()
        if math.isinf(left):
            return math.inf
        seconds = [duration for search in self.seconds.values() for duration in search]
        if not seconds:
            return self.sweeper.n_jobs if left > 0 else 0
        runs = arms * self.protocol.runs_per_pair
        return max(0, int(left * self.sweeper.n_jobs / (runs * sum(seconds) / len(seconds))))

    # ---- opening and configuring searches --------------------------------------------------------

    def opened_tuning(self, name: str, plan: Plan) -> contextlib.AbstractContextManager[Search]:
        """Open the search that runs an arm's queued tuning runs."""
        overrides = [*self.overrides_of(name), *space_of(plan), *self.logger_overrides(name, "-tuning")]
        config = self.config_of(f"tune-{name}", keep="none", evaluations=TUNING_EVALUATIONS)
        return phase(self.sweeper, config, overrides, plan.most_runs, QUEUED, self.server)

    def opened(
        self, name_of_phase: str, name: str, overrides: Sequence[str], n_trials: int, keep: str
    ) -> contextlib.AbstractContextManager[Search]:
        """Open the search that runs an arm with further overrides, up to `n_trials` trials."""
        config = self.config_of(name_of_phase, keep, evaluations=PAIR_EVALUATIONS)
        overrides = [*self.overrides_of(name), *overrides]
        return phase(self.sweeper, config, overrides, n_trials, EACH_ONCE, self.server)

    def save_protocol(self) -> None:
        """Save the protocol, the precision of all runs and the ledger's levels, which a later call continues with."""
        self.entry = entry_for_search(self)
        self.write_protocol({"ledger": self.entry.saved})


def seconds_of_runs(trials: Sequence[FrozenTrial]) -> list[float]:
    return [seconds_of(trial) or 0.0 for trial in trials if is_complete(trial)]
