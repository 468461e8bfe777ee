"""The rungs of a ladder: the models of all arms at each size, and how long they train."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.model.build import build_shapes
from minllm.model.cost import cost
from minllm.page import units
from minllm.schema.building import build
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
    """

    params: int
    flops_per_token: float
    steps: int
    tokens: int
    short_steps: int

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
    """

    number: int
    overrides: tuple[str, ...]
    arms: Mapping[str, Training]
    is_tuned: bool
    is_check: bool

    @property
    def params(self) -> float:
        """The parameters of the first arm."""
        return float(next(iter(self.arms.values())).params)

    @property
    def label(self) -> str:
        return units.count(self.params).strip()


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
        overrides = overrides_for(params, rungs)
        arms = {name: training_of(composed(name, overrides)) for name in names}
        refuse_unequal_tokens(arms, params)
        is_check = at == len(rungs.rungs)
        plans.append(RungPlan(at + 1, overrides, arms, at < rungs.n_tuned and not is_check, is_check))
    return plans


def overrides_for(params: float, rungs: Rungs) -> tuple[str, ...]:
    """Return the overrides that give an arm its size and tokens."""
    size = f"size.params={params:.12g}"
    tokens = params * rungs.proportion if rungs.proportion else rungs.tokens
    return (size,) if tokens is None else (size, "train.steps=null", f"train.tokens={round(tokens)}")


def params_for(flops: float, rungs: Rungs, composed: Callable[[tuple[str, ...]], DictConfig]) -> float:
    """Return the parameters with which an arm spends these FLOPs, at a fixed number of tokens per parameter."""
    assert rungs.proportion is not None
    params = math.sqrt(flops / (6 * rungs.proportion))
    for _ in range(ATTEMPTS):
        spent = training_of(composed(overrides_for(params, rungs))).flops
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
