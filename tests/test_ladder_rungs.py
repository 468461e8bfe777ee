"""The rungs of a ladder: what is refused, their learning rates, and the time that their runs take."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minllm.errors import UserError
from minllm.study.scaling.rates import USUAL, Optimum, line_through, optimum_of
from minllm.study.tuning import Tried, Tuning
from minllm.verdict.ladder_protocol import LadderProtocol, Rungs
from minllm.verdict.ladder_rungs import RungPlan, Training
from minllm.verdict.ladder_time import Pace, Timed, refuse_too_long, time_lines, total_seconds, work_of

RUNGS = {
    **{"params": [2e5, 4e5, 8e5], "flops": None, "sizes": None, "pairs": 4, "tuned": None},
    **{"tokens": None, "tokens_per_param": None, "check": False},
}


OF_FLOPS = {"params": None, "flops": [1e12, 2e12, 4e12]}


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"params": None}, r"A ladder needs its rungs.*'ladder.params=\[2e5,4e5,8e5,1.6e6\]'"),
        ({"flops": [1e12, 2e12, 4e12]}, "A ladder needs its rungs, as parameters or as FLOPs"),
        ({"params": [2e5, 4e5]}, "ladder.params must be 3 or more increasing sizes"),
        ({"params": [4e5, 2e5, 8e5]}, "ladder.params must be 3 or more increasing sizes"),
        ({"params": [2e5, 2.1e5, 8e5]}, "at least 1.2 times the one before"),
        ({"pairs": 1}, "needs 4 pairs or more in all: type ladder.pairs=2"),
        ({"pairs": 1001}, "ladder.pairs can't exceed 1000"),
        ({"tuned": 4}, "ladder.tuned=4 is more than the 3 rungs of ladder.params"),
        ({"tokens": 1e6, "tokens_per_param": 20}, "can't be combined with ladder.tokens_per_param"),
        ({"tokens_per_param": [20, 21]}, r"increasing ones.*such as \[10,20,40\]"),
        ({"sizes": [0.5, 1, 2]}, "type 'ladder.flops=.*instead of ladder.params"),
        ({"sizes": [1, 2]}, r"ladder.sizes must be 3 or more increasing factors.*\[0.25,0.5,1,2,4\]"),
        (
            {**OF_FLOPS, "sizes": [0.5, 1, 2], "check": True},
            "ladder.check can't be combined with ladder.sizes",
        ),
        ({"tokens_per_param": []}, "must be a number, or several increasing ones"),
        (
            {**OF_FLOPS, "tokens_per_param": [10, 20]},
            "type a single ladder.tok",
        ),
    ],
)
def test_rungs_that_show_no_trend_are_refused(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        Rungs(**{**RUNGS, **changed})


def test_a_ladder_tunes_the_learning_rate_alone():
    protocol = {"tune": ["optim.weight_decay"], "rates": [1.0], "tuning_runs": 4, "tuning_seeds": [1000]}
    with pytest.raises(UserError, match=r"type search.tune=\[optim.lr\], or search.tune=\[\]"):
        LadderProtocol(**protocol, margin=0.01, prompts=[], stories=0)


def test_two_rungs_are_tuned_or_three_of_many():
    assert Rungs(**RUNGS).n_tuned == 2 and Rungs(**{**RUNGS, "tuned": 1}).n_tuned == 1
    assert Rungs(**{**RUNGS, "params": [1e5, 2e5, 4e5, 8e5, 1.6e6]}).n_tuned == 3


# ---- learning rates ------------------------------------------------------------------------------


def tuning(best: float, noise: float = 0.0, seed: int = 0, seeds: int = 2) -> Tuning:
    """Return a tuning whose losses are quadratic in log2 of the rate, with the minimum at `best`."""
    generator = np.random.default_rng(seed)
    shifts = generator.normal(0, 0.1, seeds)
    tried = [
        Tried(
            {"optim.lr": rate},
            {
                1000 + at: 2 + 0.1 * math.log2(rate / best) ** 2 + shift + generator.normal(0, noise)
                for at, shift in enumerate(shifts)
            },
        )
        for rate in (0.001, 0.002, 0.004, 0.008, 0.016)
    ]
    places = np.log2([one.values["optim.lr"] for one in tried])
    bend, slope, _ = np.polyfit(places, [one.mean for one in tried], 2)
    return Tuning(tried, {"optim.lr": float(2 ** (-slope / (2 * bend)))}, "the minimum of a quadratic", 16)


def test_the_error_of_an_optimum_is_how_much_it_varies():
    best = [optimum_of(1e5, tuning(0.004, noise=0.2, seed=seed)) for seed in range(200)]
    spread = np.std([math.log2(one.rate) for one in best])
    assert 0.8 < np.sqrt(np.mean([one.error**2 for one in best])) / spread < 1.25


def test_without_a_fit_an_optimum_is_as_uncertain_as_the_spacing_of_the_rates():
    tried = [Tried({"optim.lr": rate}, {1000: loss}) for rate, loss in ((0.001, 2.0), (0.002, 1.9))]
    best = optimum_of(1e5, Tuning(tried, {"optim.lr": 0.002}, "", 4))
    assert best.error == pytest.approx(1 / math.sqrt(3))


def test_a_slope_that_is_well_known_is_extrapolated():
    slope = -0.8
    sizes = (1e5, 1e6, 1e7, 1e8)
    line = line_through([Optimum(size, 0.01 * (size / 1e5) ** slope, 0.15) for size in sizes])
    assert line.slope == pytest.approx(slope, abs=0.02) and line.estimated == pytest.approx(slope)
    assert line.at(1e9) == pytest.approx(0.01 * 1e4**slope, rel=0.2)
    assert "straight line" in line.sentence and "-0.80 ±" in line.sentence


@pytest.mark.parametrize("rates", [(0.227, 0.0627), (0.01, 0.02), (0.01, 0.01)])
def test_a_slope_of_two_close_sizes_is_hardly_believed(rates):
    """A wrong slope would be extrapolated far: what two rates say of it is as uncertain as their distance is short."""
    line = line_through([Optimum(1e5, rates[0], 0.4), Optimum(2e5, rates[1], 0.4)])
    assert -0.6 < line.slope < 0.1
    low, high = sorted((USUAL, line.estimated))
    assert low <= line.slope <= high


def test_transferred_rates_are_nearly_constant():
    optima = [Optimum(1e5, 0.02, 0.15), Optimum(4e5, 0.01, 0.15)]
    usual, transferred = (line_through(optima, covered) for covered in (False, True))
    assert usual.slope < -0.2 and -0.1 < transferred.slope < 0
    assert "usual +0.00 ± 0.05" in transferred.sentence


def test_optima_that_scatter_make_a_slope_less_certain():
    sizes = (1e5, 4e5, 1.6e6)
    smooth, scattered = (
        line_through([Optimum(size, rate, 0.15) for size, rate in zip(sizes, rates)])
        for rates in ((0.01, 0.02, 0.04), (0.01, 0.08, 0.04))
    )
    assert scattered.error > smooth.error and scattered.slope < smooth.slope


def test_a_better_known_optimum_counts_more_and_a_single_one_alone():
    optima = [Optimum(1e5, 0.01, 0.15), Optimum(2e5, 0.02, 1.5)]
    assert line_through(optima).at(1e5) == pytest.approx(0.01, rel=0.02)
    alone = line_through(optima[:1])
    assert alone.at(1e7) == 0.01 and math.isnan(alone.error) and "the lowest size" in alone.sentence


# ---- time ----------------------------------------------------------------------------------------

PACE = Pace(Timed(1e9, 0.1, 1.0), Timed(4e9, 0.3, 2.0))


def training(flops_per_step: float, steps: int = 10) -> Training:
    return Training(1000, flops_per_step / 100, steps, steps * 100, steps)


def rung(number: int, flops_per_step: float) -> RungPlan:
    return RungPlan(number, (), {"a": training(flops_per_step), "b": training(flops_per_step)}, False, False)


def test_times_are_a_line_in_flops_through_two_runs():
    assert PACE.seconds(training(1e9)) == pytest.approx(10 * 0.1 + 1)
    assert PACE.seconds(training(2.5e9)) == pytest.approx(10 * 0.2 + 1.5)
    assert PACE.seconds(training(4e9, steps=100)) == pytest.approx(100 * 0.3 + 2)
    by_chance = Pace(Timed(1e9, 0.3, 1.0), Timed(4e9, 0.2, 1.0))
    assert by_chance.seconds(training(1e9)) == by_chance.seconds(training(4e9)) == pytest.approx(3)


def test_time_is_predicted_for_each_rung_and_more_than_the_minutes_is_refused():
    paces = {"a": PACE, "b": PACE}
    works = [work_of(rung(1, 1e9), "paired", {"a": 4, "b": 4}, paces)]
    works.append(work_of(rung(2, 4e9), "paired", {"a": 4, "b": 2}, paces))
    assert total_seconds(works, 1) == pytest.approx(8 * 2 + 6 * 5)
    assert total_seconds(works, 2) == pytest.approx(23) and total_seconds(works, 100) == pytest.approx(2 + 5)
    lines = time_lines(works, 1)
    assert lines[1] == "Rung 2 (1,000 parameters): 6 paired runs of about 5.0 s; together 30 s."
    assert lines[-1] == "In all about 46 s."
    refuse_too_long(46, 1, {})
    with pytest.raises(
        UserError, match=r"needs about 46 s.*sweep.minutes=0.5. Type sweep.minutes=1. ladder.pa"
    ):
        refuse_too_long(46, 0.5, {"ladder.pairs=3": 40, "ladder.pairs=2": 20})
