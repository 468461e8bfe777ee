"""`python sweep.py search=rates 'arms.a=[…]' 'arms.b=[…]'`: how much the learning rate matters to each arm.

1. Size: each arm gets as many parameters as the first, at each size.
2. Seed after seed, every arm trains at every learning rate and size. A run of a few steps with a rate close to 0
   measures the loss at initialisation.
3. Report, from the seeds that every arm has completed.

Each arm at a size is a search with its own folder, so an interrupted study continues with the same command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from minllm.errors import UserError
from minllm.schema.building import build
from minllm.schema.overrides import key_of
from minllm.study.arms import identity
from minllm.study.comparison import ALPHA
from minllm.study.rates.curves import Curve, RateStudy
from minllm.study.rates.report import write_and_print
from minllm.study.selection import RATES
from minllm.study.statistics import least_pairs
from minllm.study.trust import refuse_broken_arm
from minllm.study.tuning import RATE
from minllm.sweep.launchers import shared_server
from minllm.sweep.plugin import PruningSweeper
from minllm.sweep.report.trials import counted_noun
from minllm.sweep.search import Search, run_together
from minllm.verdict.arms_search import TUNING_EVALUATIONS, ArmsSearch
from minllm.verdict.jobs import jobs_for
from minllm.verdict.ladder_rungs import shortest
from minllm.verdict.metric import refuse_early_ends
from minllm.verdict.phases import QUEUED, phase
from minllm.verdict.protocol import refuse_identical_arms
from minllm.verdict.rate_search import RateSearch, rates_of
from minllm.verdict.rates_protocol import RatesProtocol
from minllm.verdict.results import value_of
from minllm.verdict.tuning import configured

NEXT_TO_NOTHING = 1e-12
"""The learning rate of a run that measures the loss at initialisation."""
NO_BUDGET = ("train.tokens=null", "train.minutes=null", "train.flops=null")


def study_rates(sweeper: PruningSweeper, overrides: Sequence[str]) -> RateStudy | None:
    """Train each arm at all rates and sizes, and write the report; return the study, or None if dry.

    Args:
        sweeper: the sweeper that Hydra instantiated; it holds the rest of the configuration.
        overrides: the command line's overrides, without Hydra's own.

    Raises:
        UserError: an arm can't be built, or its runs fail.
        RepeatedCrashes: too many trials crashed in a row.
    """
    search = RatesSearch(sweeper, overrides)
    if not search.begin():
        return None
    with shared_server(search.config, sweeper.n_jobs) as search.server:
        study = search.study(search.train())
    print()
    write_and_print(study, search.folder)
    return study


class RatesSearch(ArmsSearch):
    """The arms of a study of learning rates at each size, and the searches that train them."""

    file = RATES
    protocol: RatesProtocol

    def __init__(self, sweeper: PruningSweeper, overrides: Sequence[str]):
        super().__init__(sweeper, overrides)
        self.precision = self.precision_override()
        first = next(iter(self.arms))
        words = [words.split() for words in self.protocol.size_words] or [[]]
        self.rungs = [(*own, *self.size_override(self.composed(first, own))) for own in words]
        """The overrides of each size, the smallest first."""
        self.cfgs = {
            (name, at): self.composed(name, rung) for at, rung in enumerate(self.rungs) for name in self.arms
        }
        smallest = {name: self.cfgs[name, 0] for name in self.arms}
        refuse_identical_arms(smallest, sized=self.protocol.equal is not None)
        self.refuse_equal_sizes()
        refuse_early_ends(self.metric, self.cfgs.values())
        for name, cfg in smallest.items():  # before anything runs
            if build(cfg.train).check:
                refuse_broken_arm(name, cfg)
        if sweeper.chooses_jobs:
            sweeper.n_jobs = jobs_for(self.config, self.cfgs[first, len(self.rungs) - 1])
        self.rates = {
            key: rates_of(configured(key[0], cfg, RATE), self.protocol.rates)
            for key, cfg in self.cfgs.items()
        }

    def refuse_equal_sizes(self) -> None:
        """Raise UserError if an arm is the same at two sizes, because it sets itself what the size would set."""
        for name in self.arms:
            at_sizes = [identity(self.cfgs[name, at]) for at in range(len(self.rungs))]
            if len(set(at_sizes)) < len(at_sizes):
                raise UserError(
                    f"arms.{name} is the same at several of the sizes {', '.join(self.protocol.size_words)}. Leave out"
                    " of the arm what the size sets."
                )

    def plan(self) -> str:
        """Return a description of what will be run."""
        protocol = self.protocol
        lines = [f"{name}: {' '.join(overrides) or 'no overrides'}" for name, overrides in self.arms.items()]
        lines += [f"Size {at}: {' '.join(rung)}" for at, rung in enumerate(self.rungs, 1) if rung]
        lines += [
            f"{name} is trained at {RATE}={', '.join(f'{rate:g}' for rate in self.rates[name, 0])}."
            for name in self.arms
        ]
        runs = protocol.seeds * sum(len(rates) + self.measures_start for rates in self.rates.values())
        sizes = f" at each of {len(self.rungs)} sizes" if len(self.rungs) > 1 else ""
        lines.append(
            f"{counted_noun(protocol.seeds, 'seed')}{sizes}: {runs} runs, {self.sweeper.n_jobs} at a time."
        )
        least = least_pairs(ALPHA, [protocol.seeds], len(self.arms) - 1)
        if protocol.seeds < least:
            lines.append(
                f"With {counted_noun(protocol.seeds, 'seed')} no arm can be called better or worse:"
                f" search.seeds={least} is the least that can tell."
            )
        return "\n".join(lines)

    @property
    def measures_start(self) -> bool:
        """Whether the loss at initialisation is part of the measure."""
        return self.protocol.measure == "sensitivity"

    # ---- training

    def train(self) -> Mapping[tuple[str, int], list[Curve]]:
        """Train all arms seed after seed while there is time, and return the curves of each arm and size."""
        curves: dict[tuple[str, int], list[Curve]] = {key: [] for key in self.cfgs}
        with contextlib.ExitStack() as stack:
            searches = {key: stack.enter_context(self.opened(*key)) for key in self.cfgs}
            starts = {
                key: stack.enter_context(self.opened_start(*key)) for key in self.cfgs if self.measures_start
            }
            for seed in range(self.protocol.seeds):
                for search in starts.values():
                    search.queue([{"seed": seed}])
                for key, search in searches.items():
                    search.queue([{RATE: rate, "seed": seed} for rate in self.rates[key]])
                run_together([*starts.values(), *searches.values()], self.sweeper.n_jobs)
                found = {key: self.curve(key, seed, searches[key], starts.get(key)) for key in self.cfgs}
                for key, curve in found.items():
                    curves[key] += [curve] if curve else []
                if None in found.values():
                    break
                print(f"Seed {seed} is done, of {self.protocol.seeds}.", flush=True)
        return curves

    def opened(self, name: str, at: int) -> contextlib.AbstractContextManager[Search]:
        """Open the search that trains an arm at all rates, at a size."""
        rates = self.rates[name, at]
        sweeps = [f"{RATE}=choice({','.join(map(repr, rates))})", f"seed=range(0,{self.protocol.seeds})"]
        overrides = [*self.overrides_of(name, self.rungs[at]), *sweeps, *self.logger_overrides(name)]
        config = self.config_of(f"seeds-{name}-{at}", keep="none", evaluations=TUNING_EVALUATIONS)
        runs = len(rates) * self.protocol.seeds
        return phase(self.sweeper, config, overrides, runs, QUEUED, self.server)

    def opened_start(self, name: str, at: int) -> contextlib.AbstractContextManager[Search]:
        """Open the search that measures an arm's loss at initialisation, at a size."""
        steps = shortest(build(self.cfgs[name, at].schedule), 1)
        short = [f"{RATE}={NEXT_TO_NOTHING}", f"train.steps={steps}", *NO_BUDGET]
        # next to no learning rate, the optimizer's other options would have no effect, and be refused
        words = [
            word for word in self.overrides_of(name, self.rungs[at]) if not key_of(word).startswith("optim.")
        ]
        overrides = [
            *words,
            *short,
            f"seed=range(0,{self.protocol.seeds})",
            *self.logger_overrides(name, "-start"),
        ]
        config = self.config_of(f"start-{name}-{at}", keep="none", evaluations=TUNING_EVALUATIONS)
        return phase(self.sweeper, config, overrides, self.protocol.seeds, QUEUED, self.server)

    def curve(self, key: tuple[str, int], seed: int, search: Search, start: Search | None) -> Curve | None:
        """Return the losses of an arm with a seed at a size; None if time ran out before all were known."""
        who, rates = self.display_name(key[0]), self.rates[key]
        ended = {
            trial.params[RATE]: value_of(trial, who)
            for trial in search.trials()
            if trial.state.is_finished() and trial.params["seed"] == seed
        }
        starts = [
            value_of(trial, who)
            for trial in (start.trials() if start else [])
            if trial.state.is_finished() and trial.params["seed"] == seed
        ]
        if not set(rates) <= set(ended) or (start and not starts):
            return None
        losses = {rate: ended[rate] for rate in rates}
        grid = RateSearch(rates, (seed,), len(rates))
        choice = grid.choice({(((RATE, rate),), seed): loss for rate, loss in losses.items()})
        best, at_edge = (choice.chosen[RATE], bool(choice.unsettled)) if choice else (None, False)
        return Curve(seed, losses, best, at_edge, starts[0] if starts else None)

    # ---- the report

    def study(self, curves: Mapping[tuple[str, int], list[Curve]]) -> RateStudy:
        """Return everything that was trained so far."""
        equal = self.protocol.equal
        sizes = self.protocol.size_words or [""]
        return RateStudy(
            measure=self.protocol.measure,
            arms=[self.display_name(name) for name in self.arms],
            sizes=sizes,
            curves={(self.display_name(name), sizes[at]): found for (name, at), found in curves.items()},
            seeds=self.protocol.seeds,
            margin=self.protocol.own_margin,
            equal=f"with the same {equal}" if equal else "each with its own size",
            command=self.command(),
        )
