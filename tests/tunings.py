"""Tunings whose runs are never trained: a test says which losses they have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from minllm.study.tuning import Tuning
from minllm.verdict.random_search import RandomSearch, draws_of
from minllm.verdict.rate_search import RateSearch
from minllm.verdict.results import Results

RATES = (0.001, 0.002, 0.004, 0.008, 0.016)
SEEDS = (1000, 1001)
Loss = Callable[[Mapping[str, float], int], float | None]

CENTRE = {"optim.lr": 0.004, "schedule.warmup_steps": 20}


def carried_out(plan: RateSearch | RandomSearch, loss: Loss) -> tuple[Tuning | None, dict]:
    """Return what a plan chooses where training has these losses, and all results in the order of the runs."""
    results: dict = {}
    while runs := plan.next_round(results):
        assert not any(run in results for run in runs)
        results |= {(values, seed): loss(dict(values), seed) for values, seed in runs}
    return plan.choice(results), results


def bowl(best: float, breaks: float = math.inf) -> Loss:
    """Return a loss that is a quadratic in the logarithm of the rate, and diverges from `breaks` on."""

    def loss(values: Mapping[str, float], seed: int) -> float | None:
        rate = values["optim.lr"]
        return None if rate >= breaks else 2 + 0.05 * math.log2(rate / best) ** 2 + 0.01 * (seed - 1000)

    return loss


def rates_in(results: Results, seed: int) -> list[float]:
    return [dict(values)["optim.lr"] for values, one in results if one == seed]


def random_search(centre: Mapping[str, float] = CENTRE, trials: int = 24) -> RandomSearch:
    return RandomSearch(draws_of(centre, trials, 8.0), SEEDS, centre, 8.0)
