"""The rungs of a ladder: the models of all arms at each size, and how long they train."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.model.build import build_shapes
from minllm.model.cost import cost
from minllm.page import units
from minllm.schema.building import build
from minllm.training.branching import branch_steps
from minllm.training.preparation import budget_of
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
    ratio: tokens per parameter, if the rung is trained at several; else None
    shorter: the same size with fewer tokens, whose runs branch off those of this rung
    """

    number: int
    overrides: tuple[str, ...]
    arms: Mapping[str, Training]
    is_tuned: bool
    is_check: bool
    ratio: float | None = None
    shorter: Sequence[RungPlan] = ()

    @property
    def key(self) -> str:
        """What names the folders of its runs."""
        return f"{self.number}-{self.ratio:g}" if self.is_branch else str(self.number)

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
        return self.label if self.ratio is None else f"{self.label}, {self.ratio:g} tokens per parameter"


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
        *fewer, most = rungs.ratios or [None]
        overrides = overrides_for(params, most, rungs.tokens)
        cfgs = {name: composed(name, overrides) for name in names}
        arms = {name: training_of(cfg) for name, cfg in cfgs.items()}
        refuse_unequal_tokens(arms, params)
        is_check = at == len(rungs.rungs)
        is_tuned = at < rungs.n_tuned and not is_check
        plan = RungPlan(at + 1, overrides, arms, is_tuned, is_check, most if fewer else None)
        # the check is of the largest number of tokens alone
        shorter = [] if is_check else [branching_off(plan, ratio, params, cfgs) for ratio in fewer]
        plans.append(replace(plan, shorter=shorter))
    return plans


def branching_off(trunk: RungPlan, ratio: float, params: float, cfgs: Mapping[str, DictConfig]) -> RungPlan:
    """Return the plan of runs with fewer tokens, which branch off those of `trunk`.

    Raises:
        UserError: a schedule's rates depend on the length of the run from the beginning.
    """
    overrides = overrides_for(params, ratio, None)
    tokens = round(params * ratio)
    arms = {name: shortened(trunk.arms[name], tokens, cfg) for name, cfg in cfgs.items()}
    refuse_unequal_tokens(arms, params)
    return RungPlan(trunk.number, overrides, arms, is_tuned=False, is_check=False, ratio=ratio)


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
    short = SHORT
    while short < steps and schedule.needed_steps(short) > short:
        short *= 2
    tokens = steps * settings.batch_size * cfg.data.seq_len
    return Training(costs.params, costs.flops_per_token, steps, tokens, min(short, steps))


def refuse_unequal_tokens(arms: Mapping[str, Training], params: float) -> None:
    tokens = {name: training.tokens for name, training in arms.items()}
    if len(set(tokens.values())) > 1:
        listed = ", ".join(f"{name} {count:,}" for name, count in tokens.items())
        raise UserError(
            f"At {units.count(params)} parameters the arms see different numbers of tokens ({listed}): give them the"
            " same budget, batch size and data.seq_len."
        )
