"""The rungs of a ladder: the models of all arms at each size, and how long they train."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.model.build import build_shapes
from minllm.model.cost import cost
from minllm.page import units
from minllm.schema.building import build
from minllm.training.branching import branch_steps
from minllm.training.preparation import budget_of
from minllm.training.schedules import Schedule
from minllm.verdict.ladder_protocol import Rungs

CLOSE = 0.01
"""Up to this relative distance, a rung has the FLOPs that were asked for."""
ATTEMPTS = 12
SHORT = 10
"""The steps of a run that measures the time of a step, unless the schedule needs more."""


@dataclass(frozen=True)
class Training:
    """A run of an arm at a rung: its model, and how long it trains.

    short_steps: the length of a run that only measures the time of a step
    begins_at: the step from which it branches off a longer run, which has trained the steps before
    """

    params: int
    flops_per_token: float
    steps: int
    tokens: int
    short_steps: int
    begins_at: int = 0

    @property
    def flops(self) -> float:
        return self.flops_per_token * self.tokens

    @property
    def flops_per_step(self) -> float:
        return self.flops / self.steps


@dataclass(frozen=True)
class RungPlan:
    """A size, and what is trained there.

    number: from 1 at the smallest
    overrides: what gives every arm this size and its tokens
    arms: the run of each arm, by name
    is_tuned, is_check: whether learning rates are tuned here, and whether it is the rung above the ladder
    suffix: distinguishes the folders of its runs from those of other plans of the same rung
    detail: distinguishes its arms in words from those of other plans of the same rung
    others: further plans of the same rung: the same size with fewer tokens, whose runs branch off those of this plan,
        or other sizes with the same FLOPs
    """

    number: int
    overrides: tuple[str, ...]
    arms: Mapping[str, Training]
    is_tuned: bool
    is_check: bool
    suffix: str = ""
    detail: str = ""
    others: Sequence[RungPlan] = ()

    @property
    def plans(self) -> list[RungPlan]:
        return [self, *self.others]

    @property
    def key(self) -> str:
        """What names the folders of its runs."""
        return f"{self.number}{self.suffix}"

    @property
    def is_branch(self) -> bool:
        return any(training.begins_at for training in self.arms.values())

    @property
    def params(self) -> float:
        """The parameters of the first arm."""
        return float(next(iter(self.arms.values())).params)

    @property
    def tokens(self) -> int:
        """Of each run, which are the same for all arms."""
        return next(iter(self.arms.values())).tokens

    @property
    def label(self) -> str:
        return units.count(self.params).strip()

    @property
    def place(self) -> str:
        """What distinguishes its arms from those at other rungs."""
        return f"{self.label}{self.detail}"


def rungs_of(
    rungs: Rungs, names: Sequence[str], composed: Callable[[str, tuple[str, ...]], DictConfig]
) -> list[RungPlan]:
    """Return the rungs, the smallest first, and the check last if there is one.

    Args:
        composed: returns the configuration of an arm with further overrides.

    Raises:
        UserError: an arm can't have a size, or its budget isn't a number of tokens that all arms share.
    """
    sizes = [*rungs.rungs, *([rungs.rungs[-1] * rungs.step] if rungs.check else [])]
    plans = []
    for at, size in enumerate(sizes):
        params = size if rungs.params else params_for(size, rungs, lambda words: composed(names[0], words))
        is_check = at == len(rungs.rungs)
        place = Place(at + 1, at < rungs.n_tuned and not is_check, is_check, names, composed)
        if rungs.sizes:
            plans.append(of_budget(place, size, params, rungs.sizes))
        else:
            plans.append(of_size(place, params, rungs))
    return plans


@dataclass(frozen=True)
class Place:
    """A rung whose plans are made: its number, whether it is tuned or the check, and how its arms are composed."""

    number: int
    is_tuned: bool
    is_check: bool
    names: Sequence[str]
    composed: Callable[[str, tuple[str, ...]], DictConfig]

    def cfgs(self, overrides: tuple[str, ...]) -> dict[str, DictConfig]:
        return {name: self.composed(name, overrides) for name in self.names}

    def plan(self, overrides: tuple[str, ...], **more: Any) -> RungPlan:
        arms = {name: training_of(cfg) for name, cfg in self.cfgs(overrides).items()}
        refuse_unequal_tokens(arms)
        return RungPlan(self.number, overrides, arms, self.is_tuned, self.is_check, **more)


def of_size(place: Place, params: float, rungs: Rungs) -> RungPlan:
    """Return the plan of a rung of one size, whose runs are read at each number of tokens per parameter."""
    *fewer, most = rungs.ratios or [None]
    plan = place.plan(overrides_for(params, most, rungs.tokens))
    if not fewer or place.is_check:  # the check is of the largest number of tokens alone
        return plan
    others = [branching_off(plan, ratio, params, place.cfgs(plan.overrides)) for ratio in fewer]
    return replace(plan, detail=f", {most:g} tokens per parameter", others=others)


def branching_off(trunk: RungPlan, ratio: float, params: float, cfgs: Mapping[str, DictConfig]) -> RungPlan:
    """Return the plan of runs with fewer tokens, which branch off those of `trunk`.

    Raises:
        UserError: a schedule's rates depend on the length of the run from the beginning.
    """
    tokens = round(params * ratio)
    arms = {name: shortened(trunk.arms[name], tokens, cfg) for name, cfg in cfgs.items()}
    refuse_unequal_tokens(arms)
    return replace(
        trunk,
        overrides=overrides_for(params, ratio, None),
        arms=arms,
        is_tuned=False,
        suffix=f"-{ratio:g}",
        detail=f", {ratio:g} tokens per parameter",
    )


def of_budget(place: Place, flops: float, params: float, factors: Sequence[float]) -> RungPlan:
    """Return the plan of a rung of several sizes with the same FLOPs; its own size is the one that is tuned.

    Args:
        params: the size that the factors are of.
    """
    by_factor = {}
    for factor in factors:
        size = factor * params
        sized = place.composed(place.names[0], (f"size.params={size:.12g}",))
        tokens = flops / training_of(sized).flops_per_token
        detail = f", {units.count(flops).strip()} FLOPs"
        overrides = overrides_for(size, None, tokens)
        by_factor[factor] = place.plan(overrides, suffix=f"-x{factor:g}", detail=detail)
    middle = min(factors, key=lambda factor: abs(math.log(factor)))
    others = [replace(plan, is_tuned=False) for factor, plan in by_factor.items() if factor != middle]
    return replace(by_factor[middle], suffix="", others=others)


def shortened(training: Training, tokens: int, cfg: DictConfig) -> Training:
    """Return a run of fewer tokens that branches off a longer one."""
    schedule, settings = build(cfg.schedule), replace(build(cfg.train), branches=[float(tokens)])
    each = training.tokens // training.steps
    steps = math.ceil(tokens / each)
    schedule.check(steps)
    (begins_at,) = branch_steps(settings, schedule, training.steps, each)
    return replace(training, steps=steps, tokens=steps * each, begins_at=begins_at)


def overrides_for(params: float, ratio: float | None, tokens: float | None) -> tuple[str, ...]:
    """Return the overrides that give an arm its size and tokens, which may be in proportion to the size."""
    size = f"size.params={params:.12g}"
    tokens = params * ratio if ratio else tokens
    return (size,) if tokens is None else (size, "train.steps=null", f"train.tokens={round(tokens)}")


def params_for(flops: float, rungs: Rungs, composed: Callable[[tuple[str, ...]], DictConfig]) -> float:
    """Return the parameters with which an arm spends these FLOPs, at a fixed number of tokens per parameter."""
    (ratio,) = rungs.ratios
    params = math.sqrt(flops / (6 * ratio))
    for _ in range(ATTEMPTS):
        spent = training_of(composed(overrides_for(params, ratio, None))).flops
        if abs(spent / flops - 1) <= CLOSE:
            break
        params *= math.sqrt(flops / spent)
    return params


def training_of(cfg: DictConfig) -> Training:
    """Return what a run of this configuration trains. UserError if its budget isn't steps or tokens."""
    settings = build(cfg.train)
    if settings.minutes is not None or settings.flops is not None:
        key = "train.minutes" if settings.minutes is not None else "train.flops"
        raise UserError(
            f"A ladder holds tokens equal at each rung, so {key} can't limit its runs: leave it out, and type"
            " ladder.tokens=<tokens>, train.steps=<steps> or 'ladder.flops=[…]'."
        )
    model = build_shapes(cfg, build(cfg.tokenizer).vocab_size)
    costs = cost(model, cfg.data.seq_len)
    steps = budget_of(settings, model, cfg.data.seq_len).total_steps
    schedule = build(cfg.schedule)
    schedule.check(steps)
    tokens = steps * settings.batch_size * cfg.data.seq_len
    short = min(shortest(schedule, SHORT), steps)
    return Training(costs.params, costs.flops_per_token, steps, tokens, short)


def shortest(schedule: Schedule, steps: int) -> int:
    """Return the smallest doubling of `steps` that is long enough for a schedule."""
    while schedule.needed_steps(steps) > steps:
        steps *= 2
    return steps


def refuse_unequal_tokens(arms: Mapping[str, Training]) -> None:
    tokens = {name: training.tokens for name, training in arms.items()}
    if len(set(tokens.values())) > 1:
        listed = ", ".join(f"{name} {count:,}" for name, count in tokens.items())
        size = units.count(next(iter(arms.values())).params)
        raise UserError(
            f"At {size} parameters the arms see different numbers of tokens ({listed}): give them the same budget,"
            " batch size and data.seq_len."
        )
