"""Tuning the hyper-parameters of a verdict's arms, in rounds of runs whose results decide the next round.

A round depends only on complete rounds before it. An interrupted verdict therefore tries and chooses the same values
when it repeats the rounds with the results so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial

from minllm.errors import UserError
from minllm.model.build import build_shapes
from minllm.schema.building import build
from minllm.schema.overrides import format_value
from minllm.study.arms import ABSENT
from minllm.study.tuning import RATE, Tuning
from minllm.sweep.report.trials import is_complete
from minllm.sweep.search import Search, run_together
from minllm.sweep.spec import SearchSpec
from minllm.training.preparation import budget_of
from minllm.verdict.protocol import Protocol
from minllm.verdict.random_search import RandomSearch, draws_of
from minllm.verdict.rate_search import RateSearch, rates_of
from minllm.verdict.results import DIVERGED, Results, Round, Run, tried

Plan: TypeAlias = RateSearch | RandomSearch

CONTINUE = "Run the same command to continue, with a larger sweep.minutes=<minutes> if needed."
TUNABLE = ("optim.", "schedule.", "model.", "norm.", "objective.")
WARMUP = "schedule.warmup_steps"
EXAMPLES = {"optim.weight_decay": "0.1", WARMUP: "20"}
"""Values to suggest where a multiple of the configured one isn't possible."""


class NothingToCompare(Exception):
    """A verdict ends without a comparison, because no arm, or not every arm, has a result.

    Args:
        reason: as a clause.
        advice: what the user can do, as a sentence; "" if nothing.
    """

    def __init__(self, reason: str, advice: str = ""):
        super().__init__(reason)
        self.reason, self.advice = reason, advice


def plan_of(name: str, cfg: DictConfig, protocol: Protocol, perfect: float = 0.0) -> Plan:
    """Return what an arm tries, from its own configuration. UserError if a key can't be tuned in this arm.

    Args:
        perfect: the value of the metric that can't be improved.
    """
    seeds = tuple(protocol.tuning_seeds)
    if protocol.is_grid:
        rates = rates_of(configured(name, cfg, RATE), protocol.rates)
        return RateSearch(rates, seeds, protocol.tuning_runs, perfect)
    centre = {key: configured(name, cfg, key) for key in protocol.tune}
    return RandomSearch(
        draws_of(centre, protocol.trials, protocol.span), seeds, centre, protocol.span, perfect
    )


def refuse_extremes(name: str, plan: Plan, spec_of: Callable[[Sequence[str]], SearchSpec]) -> None:
    """Raise UserError if an arm can't be trained with the lowest or the highest values of a random search.

    Args:
        spec_of: returns the arm's search space with the given sweeps.
    """
    if isinstance(plan, RateSearch):
        return
    spec = spec_of(space_of(plan))
    for end, place in (("lowest", 0), ("highest", 1)):
        values = {key: ends[place] for key, ends in plan.ranges().items()}
        if why := spec.refusal({**values, "seed": plan.seeds[0]}):
            shown = " ".join(f"{key}={value:g}" for key, value in values.items())
            raise UserError(
                f"Arm {name} can't be trained with the {end} values of its random search ({shown}): {why} Make"
                " search.span smaller, or remove the key from search.tune."
            )


def plan_lines(plans: Mapping[str, Plan]) -> list[str]:
    """Return what is tried for each arm, and how many runs that takes."""
    lines = [f"{name} tries {plan.description}." for name, plan in plans.items()]
    if not plans:
        return lines
    first = next(iter(plans.values()))
    least = sum(len(plan.next_round({})) for plan in plans.values())
    seeds = ", ".join(map(str, first.seeds[1:]))
    again = f", and then what is best with seed{'s' * (len(first.seeds) > 2)} {seeds}" if seeds else ""
    return [
        *lines,
        f"Tuning: {least} runs with seed {first.seeds[0]}{again}; at most {first.most_runs} runs for each arm.",
    ]


def tune(
    plans: Mapping[str, Plan],
    searches: Mapping[str, Search],
    n_jobs: int,
    score: Callable[[FrozenTrial], float | None] = lambda trial: trial.value,
) -> dict[str, Tuning]:
    """Run each arm's rounds until none needs another, and return what was tried and chosen.

    Arms run their rounds side by side, so that an arm that needs a single run leaves no job idle.

    Args:
        score: returns a number that is lower for better trials.

    Raises:
        UserError: an arm can't be tuned, because its runs failed.
        NothingToCompare: time ran out.
    """
    results: dict[str, dict[Run, float | None]] = {name: {} for name in plans}
    while rounds := {name: runs for name, plan in plans.items() if (runs := plan.next_round(results[name]))}:
        for name, runs in rounds.items():
            searches[name].queue([parameters(run) for run in runs])
        run_together([searches[name] for name in rounds], n_jobs)
        for name, runs in rounds.items():
            results[name] |= results_of(name, runs, searches[name].trials(), score)
    return {
        name: choice_of(name, plan, results[name], searches[name].trials()) for name, plan in plans.items()
    }


def results_of(
    name: str, runs: Round, trials: Sequence[FrozenTrial], score: Callable[[FrozenTrial], float | None]
) -> dict[Run, float | None]:
    """Return the score of each run, and None where it diverged or failed.

    Raises:
        NothingToCompare: time ran out before all of them ended.
    """
    ended = {
        tuple(sorted(trial.params.items())): score(trial) if is_complete(trial) else None
        for trial in trials
        if trial.state.is_finished()
    }
    keys = {run: tuple(sorted(parameters(run).items())) for run in runs}
    if any(key not in ended for key in keys.values()):
        raise NothingToCompare(f"time ran out while tuning arm {name}", CONTINUE)
    return {run: ended[key] for run, key in keys.items()}


def parameters(run: Run) -> dict[str, float]:
    """Return a run's values and seed as the parameters of a trial."""
    values, seed = run
    return {**dict(values), "seed": seed}


def choice_of(name: str, plan: Plan, results: Results, trials: Sequence[FrozenTrial]) -> Tuning:
    """Return what is chosen for an arm: the lowest values if nothing counts because training diverged.

    Raises:
        UserError: nothing counts, because runs failed in another way, such as without memory.
    """
    if choice := plan.choice(results):
        return choice
    lowest = plan.lowest(results)
    failures = [trial.user_attrs for trial in trials if trial.user_attrs.get("reason", DIVERGED) != DIVERGED]
    if failures:
        shown = " ".join(f"{key}={value:g}" for key, value in lowest)
        raise UserError(
            f"Arm {name} can't be tuned: no value that was tried counts, down to {shown}, and not only because training"
            f" diverged. The first other failure: {failures[0]['text']}"
        )
    choice = Tuning(
        tried(results, plan.planned_values),
        dict(lowest),
        "the lowest values that were tried, because training diverged with them",
        plan.most_runs,
    )
    where = "all values" if choice.always_diverged else "the lowest values"
    return replace(choice, unsettled=f"training diverged with {where} that were tried, in {choice.runs} runs")


def space_of(plan: Plan, seeds: int = 0) -> list[str]:
    """Return sweeps in Hydra's grammar that contain everything that a plan may try.

    Args:
        seeds: how many seeds, from 0, are trained in the same search after the tuning.
    """
    ranges = {**plan.ranges(), "seed": (0 if seeds else min(plan.seeds), max(*plan.seeds, seeds))}
    return [
        f"{key}=range({low},{high + 1})"
        if isinstance(low, int)
        else f"{key}=tag(log,interval({low!r},{high!r}))"
        for key, (low, high) in ranges.items()
    ]


def configured(name: str, cfg: DictConfig, key: str) -> float:
    """Return an arm's configured value, of which multiples are tried. UserError if that isn't possible."""
    value = OmegaConf.select(cfg, key, default=ABSENT)
    if value is ABSENT or not key.startswith(TUNABLE):
        sections = ", ".join(f"{section}*" for section in TUNABLE)
        raise UserError(
            f"search.tune has {key}, but arm {name} has no such number among {sections}. Type the full key of one that"
            " every arm has, such as optim.lr."
        )
    if value is None and key == WARMUP:
        value = warmup_of(cfg)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(
            f"search.tune={key} tries multiples of a number above 0, but in arm {name} it is"
            f" {format_value(value)}. Set it, such as {key}={EXAMPLES.get(key, '1')}, or remove it from search.tune."
        )
    return value


def warmup_of(cfg: DictConfig) -> int:
    """Return the length of the warm-up that the schedule chooses where none is configured."""
    settings = build(cfg.train)
    model = build_shapes(cfg, build(cfg.tokenizer).vocab_size)
    return build(cfg.schedule).warmup(budget_of(settings, model, cfg.data.seq_len).total_steps)
