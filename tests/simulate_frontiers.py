"""How often predictions for larger budgets contain the true difference of the best sizes' losses, in simulated IsoFLOP.

`python -m tests.simulate_frontiers` prints the table of docs/scale.md, which takes a few minutes of CPU time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from minllm.study.arms import Arm
from minllm.study.scaling import ladders as of_ladders
from minllm.study.scaling.ladders import Family, Ladder, between
from minllm.study.scaling.law import Law

FLOOR = 0.3


@dataclass(frozen=True)
class World:
    """How ladders of two arms are drawn.

    noise: the standard deviation of log(L − E) between runs
    bend: that of the coefficient of (log N)² and (log D)², by which the terms depart from power laws
    centre: the sizes that are trained at each budget are around the best one of the baseline, times this
    """

    noise: float = 0.01
    bend: float = 0.0
    budgets: int = 4
    step: float = 3.0
    sizes: Sequence[float] = (0.25, 0.5, 1, 2, 4)
    seeds: int = 3
    centre: float = 1.0
    is_floor_known: bool = True


@dataclass(frozen=True)
class Truth:
    """An arm: its law, and how its terms depart from it."""

    law: Law
    bends: tuple[float, float]

    def at(self, params: float, tokens: float) -> float:
        """Return the expected loss."""
        terms = [
            amount * scale**-exponent * math.exp(bend * math.log(scale / start) ** 2)
            for amount, exponent, bend, scale, start in zip(
                self.law.amounts, self.law.exponents, self.bends, (params, tokens), (2e5, 4e6)
            )
        ]
        return self.law.floor + sum(terms)

    def best(self, flops: float) -> tuple[float, float]:
        """Return the best size at a budget, with 6 FLOPs for each parameter and token, and the loss there."""
        found = minimize_scalar(
            lambda log: self.at(math.exp(log), flops / 6 / math.exp(log)),
            bounds=(math.log(1e3), math.log(1e10)),
            method="bounded",
            options={"xatol": 1e-4},
        )
        return math.exp(found.x), float(found.fun)


def truths(world: World, generator: np.random.Generator) -> list[Truth]:
    """Draw the baseline, and an arm that differs from it in both terms."""
    alpha, beta = generator.uniform(0.25, 0.4, 2)
    terms = np.array([0.35 * 2e5**alpha, 0.35 * 4e6**beta])
    own = np.exp(generator.normal(0, 0.1, 2))
    shift = generator.normal(0, 0.02, 2)
    exponents = np.array([alpha, beta])
    bends = tuple(generator.normal(0, world.bend, 2).tolist())
    laws = [
        Law(FLOOR, tuple(terms.tolist()), tuple(exponents.tolist())),
        Law(
            FLOOR,
            tuple((terms * own * np.array([2e5, 4e6]) ** shift).tolist()),
            tuple((exponents + shift).tolist()),
        ),
    ]
    return [Truth(law, bends) for law in laws]


def budgets_of(world: World) -> list[float]:
    return [6 * 2e5 * 4e6 * world.step**at for at in range(world.budgets)]


def families(world: World, arms: Sequence[Truth], generator: np.random.Generator) -> list[Family]:
    """Train both arms at each size of each budget."""
    cells = [
        (flops, arms[0].best(flops)[0] * world.centre * factor)
        for flops in budgets_of(world)
        for factor in world.sizes
    ]
    return [
        Family(name, [trained(truth, params, flops, world, generator) for flops, params in cells])
        for name, truth in zip(("baseline", "arm"), arms)
    ]


def trained(truth: Truth, params: float, flops: float, world: World, generator: np.random.Generator) -> Arm:
    tokens = flops / 6 / params
    expected = truth.at(params, tokens) - FLOOR

    def run(seed: int) -> Any:
        loss = FLOOR + expected * math.exp(generator.normal(0, world.noise))
        summary = {"params": params, "tokens": tokens, "flops_per_token": 6 * params, "val_bpb": loss}
        return SimpleNamespace(summary={**summary, "wall_seconds": 1.0}, cfg={"seed": seed})

    return Arm(f"{params:.3g}, {flops:.3g}", {seed: run(seed) for seed in range(world.seeds)})


def simulated(world: World, generator: np.random.Generator, resamples: int) -> tuple[Ladder, list[Truth]]:
    """Draw a ladder, and return it with the truth."""
    arms = truths(world, generator)
    baseline, arm = families(world, arms, generator)
    before, of_ladders.RESAMPLES = of_ladders.RESAMPLES, resamples
    try:
        (ladder,) = between(baseline, arm, FLOOR if world.is_floor_known else None)
    finally:
        of_ladders.RESAMPLES = before
    return ladder, arms


def coverage(world: World, ladders: int, seed: int = 0, resamples: int = 2) -> tuple[float, float, int]:
    """Return how often intervals contain the true difference at 4 and 16 times the FLOPs, and the number of answers."""
    hits = []
    for index in range(ladders):
        ladder, arms = simulated(world, np.random.default_rng((seed, index)), resamples)
        if ladder.answer is None:
            continue
        hit = []
        for prediction in ladder.answer.predictions:
            losses = [truth.best(prediction.size)[1] for truth in arms]
            low, high = prediction.difference.interval
            hit.append(low <= losses[1] - losses[0] <= high)
        hits.append(hit)
    near, far = np.mean(hits, axis=0)
    return float(near), float(far), len(hits)


def main(ladders: int = 100) -> None:
    worlds = [
        *(World(bend=bend) for bend in (0, 0.01, 0.03)),
        *(World(bend=bend, is_floor_known=False) for bend in (0, 0.01)),
        World(noise=0.03),
        World(seeds=2, budgets=3),
        World(centre=2.0),
    ]
    print("| budgets | seeds | noise | E | bend | sizes around | 4 × | 16 × | answered |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row, world in enumerate(worlds):
        near, far, answered = coverage(world, ladders, seed=row)
        floor = "known" if world.is_floor_known else "fitted"
        shown = [f"{100 * share:.0f} %" for share in (near, far, answered / ladders)]
        around = "the best" if world.centre == 1 else f"{world.centre:g} × the best"
        settings = [world.budgets, world.seeds, world.noise, floor, world.bend, around]
        print(f"| {' | '.join(map(str, [*settings, *shown]))} |", flush=True)


if __name__ == "__main__":
    main()
