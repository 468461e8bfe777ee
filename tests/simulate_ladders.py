"""How often a prediction beyond the largest rung contains the true difference, in simulated ladders.

`python -m tests.simulate_ladders` prints the table of docs/scale.md, which takes about five minutes of CPU time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minllm.study.scaling.trend import Floats, draw

FLOOR = 0.3
AHEAD = (4, 16)
DRAWS = 4000


@dataclass(frozen=True)
class World:
    """How ladders are drawn.

    bend: the standard deviation of the coefficient of (log N)² in both lines: how far they are from power laws
    noise, own: the standard deviations between seeds of log(L − E), and of the ratio of two arms with the same seed
    """

    bend: float = 0.0
    rungs: int = 4
    seeds: int = 3
    step: float = 2.0
    noise: float = 0.01
    own: float = 0.006
    is_floor_known: bool = True


@dataclass(frozen=True)
class Simulated:
    """A ladder, the true differences ahead of it, and those that were measured there."""

    sizes: Floats
    baseline: list[list[float]]
    arm: list[list[float]]
    ahead: Floats
    true: Floats
    measured: Floats


def simulated(world: World, generator: np.random.Generator) -> Simulated:
    """Draw a ladder: the baseline's law, the arm's, and the runs of both."""
    sizes = 2e5 * world.step ** np.arange(world.rungs)
    ahead = sizes[-1] * np.array(AHEAD)
    of_baseline = [math.log(generator.uniform(0.5, 1)), -generator.uniform(0.15, 0.4)]
    of_ratio = [generator.normal(0, 0.05), generator.normal(0, 0.03)]
    lines = [
        np.polynomial.Polynomial([*line, generator.normal(0, world.bend)]) for line in (of_baseline, of_ratio)
    ]

    def runs(size: float) -> tuple[list[float], list[float]]:
        at = math.log(size / sizes[0])
        excess = np.exp(lines[0](at) + generator.normal(0, world.noise, world.seeds))
        ratio = np.exp(lines[1](at) + generator.normal(0, world.own, world.seeds))
        return list(FLOOR + excess), list(FLOOR + excess * ratio)

    rungs, later = [runs(size) for size in sizes], [runs(size) for size in ahead]
    logs = np.log(ahead / sizes[0])
    return Simulated(
        sizes,
        [rung[0] for rung in rungs],
        [rung[1] for rung in rungs],
        ahead,
        true=np.exp(lines[0](logs)) * np.expm1(lines[1](logs)),
        measured=np.array([np.mean(b) - np.mean(a) for a, b in later]),
    )


def coverage(world: World, ladders: int, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Return how often intervals contain the true and the measured difference ahead, and their median widths."""
    hits, widths = np.zeros((2, len(AHEAD))), []
    for index in range(ladders):
        generator = np.random.default_rng((seed, index))
        ladder = simulated(world, generator)
        floor = FLOOR if world.is_floor_known else None
        draws = draw(
            list(ladder.sizes), ladder.baseline, ladder.arm, list(ladder.ahead), floor=floor, draws=DRAWS
        )
        for hit, values, goal in zip(
            hits,
            (draws.differences, draws.measured(world.seeds, generator)),
            (ladder.true, ladder.measured),
        ):
            low, high = np.quantile(values, (0.025, 0.975), axis=0)
            hit += (low <= goal) & (goal <= high)
        widths.append(high - low)
    return hits[0] / ladders, hits[1] / ladders, np.median(widths, axis=0)


def main(ladders: int = 1000) -> None:
    worlds: Sequence[World] = [
        *(World(bend=bend) for bend in (0, 0.003, 0.01, 0.03)),
        *(World(bend=bend, is_floor_known=False) for bend in (0, 0.003, 0.01, 0.03)),
        *(World(bend=bend, rungs=3) for bend in (0, 0.01)),
        *(World(bend=bend, rungs=5, seeds=2) for bend in (0, 0.01)),
        *(World(bend=bend, noise=0.03, own=0.02) for bend in (0, 0.01)),
        *(World(bend=bend, step=4) for bend in (0, 0.01)),
    ]
    print("| rungs | step | seeds | noise | E | bend | 4 × | 16 × | measured at 4 × | at 16 × |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for world in worlds:
        true, measured, _ = coverage(world, ladders)
        shown = [f"{100 * share:.1f} %" for share in (*true, *measured)]
        floor = "known" if world.is_floor_known else "fitted"
        settings = [world.rungs, f"{world.step:g}", world.seeds, world.own, floor, world.bend]
        print(f"| {' | '.join(map(str, [*settings, *shown]))} |", flush=True)


if __name__ == "__main__":
    main()
