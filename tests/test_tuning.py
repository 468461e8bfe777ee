"""How arms are tuned: where the grid goes, what is chosen, what isn't settled, and their tuning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from opda.nonparametric import EmpiricalDistribution

from minllm.study.tuning_curves import CONFIDENCE, separate_at, tuning_curve
from minllm.verdict.random_search import FINALISTS
from minllm.verdict.rate_search import RateSearch, rates_of
from tests.tunings import CENTRE, RATES, SEEDS, bowl, carried_out, random_search, rates_in

# ---- the grid ------------------------------------------------------------------------------------


def test_rates_are_multiples_of_the_configured_one():
    assert rates_of(0.003, [1, 0.25, 4]) == (0.00075, 0.003, 0.012)


def test_the_minimum_between_rates_is_chosen_with_the_fewest_runs():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 16), bowl(0.003))
    assert choice.chosen == {"optim.lr": 0.003} and choice.how == (
        "the minimum of a quadratic through 5 rates, within the range that was tried"
    )
    assert rates_in(results, 1000) == list(RATES) and rates_in(results, 1001) in (
        [0.001, 0.002, 0.004],
        [0.002, 0.004, 0.008],
    )
    assert choice.runs == 8 and choice.unsettled == ""


@pytest.mark.parametrize(
    ("best", "beyond"),
    [(0.05, [0.032, 0.064, 0.128, 0.256]), (0.0003, [0.0005, 0.00025, 0.000125, 6.25e-05])],
)
def test_grid_is_extended_until_the_best_is_inside(best, beyond):
    choice, results = carried_out(RateSearch(RATES, SEEDS, 16), bowl(best))
    assert rates_in(results, 1000) == [*RATES, *beyond] and choice.chosen["optim.lr"] == pytest.approx(
        best, rel=1e-2
    )
    assert choice.unsettled == "" and [one.values["optim.lr"] for one in choice.tried if one.planned] == list(
        RATES
    )


def test_grid_is_extended_by_the_spacing_at_its_edge():
    _, results = carried_out(RateSearch((0.001, 0.002, 0.02), SEEDS, 16), bowl(0.1))
    assert rates_in(results, 1000)[3:] == [0.2, 2.0]


def test_the_limit_on_runs_leaves_an_edge_unsettled():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 7), bowl(1.0))
    assert len(results) == 7 and choice.chosen == {"optim.lr": 0.064}
    assert choice.unsettled == (
        "its best learning rate, 0.064, is the highest that was tried after 7 runs of at most 7 (search.tuning_runs)"
    )


def test_the_limit_on_runs_leaves_repeats_unsettled():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 7), bowl(0.004))
    assert len(results) == 5 and choice.unsettled.startswith(
        "its best learning rates weren't tried with every"
    )


def test_the_choice_is_a_fit_and_not_the_single_lowest():
    """One lucky run moves the choice less than to its own rate."""

    def loss(values: Mapping[str, float], seed: int) -> float:
        return bowl(0.004)(values, seed) - 0.06 * (values["optim.lr"] == 0.008)

    choice, results = carried_out(RateSearch(RATES, (1000,), 16), loss)
    assert min(results, key=results.__getitem__)[0] == (("optim.lr", 0.008),)
    assert 0.004 < choice.chosen["optim.lr"] < 0.007


def test_rates_are_compared_as_if_all_had_been_tried_with_every_seed():
    """The second seed is harder, and still the rates tried with it stay ahead of those that weren't."""

    def loss(values: Mapping[str, float], seed: int) -> float:
        return bowl(0.004)(values, 1000) + (seed == 1001)

    choice, results = carried_out(RateSearch(RATES, SEEDS, 16), loss)
    assert choice.chosen == {"optim.lr": 0.004} and rates_in(results, 1001) == [0.002, 0.004, 0.008]


def test_a_rate_counts_only_if_all_lower_rates_held():
    """What once happened: a low rate diverged and higher ones didn't, and the highest was taken."""

    def loss(values: Mapping[str, float], seed: int) -> float | None:
        return None if values["optim.lr"] == 0.004 else bowl(0.02)(values, seed)

    choice, _ = carried_out(RateSearch(RATES, SEEDS, 16), loss)
    assert choice.chosen == {"optim.lr": 0.002} and choice.unsettled == ""


def test_a_rate_that_diverges_with_a_further_seed_isnt_chosen():
    def loss(values: Mapping[str, float], seed: int) -> float | None:
        return None if seed == 1001 and values["optim.lr"] > 0.003 else bowl(0.016)(values, seed)

    choice, _ = carried_out(RateSearch(RATES, SEEDS, 16), loss)
    assert choice.chosen == {"optim.lr": 0.002} and choice.unsettled == ""
    assert [one.mean for one in choice.tried if one.values["optim.lr"] == 0.004] == [None]


def test_a_best_rate_below_one_that_diverges_is_inside_and_isnt_exceeded():
    choice, _ = carried_out(RateSearch(RATES, SEEDS, 16), bowl(0.012, breaks=0.008))
    assert choice.chosen == {"optim.lr": 0.004} and choice.unsettled == ""
    assert choice.how.startswith("nearest to the minimum of a quadratic through 3 rates, which lies beyond")


def test_where_the_lowest_rate_diverges_lower_ones_are_tried():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 16), bowl(0.0001, breaks=0.001))
    assert rates_in(results, 1000)[5] == 0.0005 and choice.chosen["optim.lr"] == pytest.approx(
        0.0001, rel=1e-2
    )


def test_an_arm_that_always_diverges_has_no_choice():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 9), bowl(0.004, breaks=0))
    assert choice is None and len(results) == 9


@pytest.mark.parametrize("noise", [0.003, 0.03])
def test_the_choice_costs_less_than_that_of_the_lowest_loss(noise):
    """On a lopsided loss with noise, as models have it."""

    def true(rate: float) -> float:
        place = math.log2(rate / 0.005)
        return 0.02 * place**2 if place < 0 else 0.04 * place**2

    random = np.random.default_rng(0)
    fitted, lowest = [], []
    for _ in range(200):
        shift = 2 ** random.uniform(-0.5, 0.5)

        def loss(values: Mapping[str, float], seed: int, shift=shift) -> float:
            return true(values["optim.lr"] * shift) + noise * random.standard_normal()

        choice, results = carried_out(RateSearch(RATES, SEEDS, 16), loss)
        fitted.append(true(choice.chosen["optim.lr"] * shift))
        best = min((run for run in results if run[1] == 1000), key=results.__getitem__)
        lowest.append(true(dict(best[0])["optim.lr"] * shift))
    assert np.mean(fitted) < 0.8 * np.mean(lowest)


# ---- random search -------------------------------------------------------------------------------


def test_draws_are_the_same_multiples_for_every_arm_and_within_the_span():
    draws, others = (random_search({**CENTRE, "optim.lr": rate}).draws for rate in (0.004, 0.04))
    assert len(draws) == 24 and len(set(draws)) == 24
    for draw, other in zip(draws, others):
        assert dict(other)["optim.lr"] == pytest.approx(10 * dict(draw)["optim.lr"], rel=1e-2)
        assert dict(other)["schedule.warmup_steps"] == dict(draw)["schedule.warmup_steps"]
    rates, steps = zip(*(dict(draw).values() for draw in draws))
    assert 0.0005 <= min(rates) < 0.001 and 0.016 < max(rates) <= 0.032
    assert all(isinstance(one, int) and 1 <= one <= 160 for one in steps)


def test_the_best_draw_is_chosen_after_the_finalists_were_repeated():
    def loss(values: Mapping[str, float], seed: int) -> float:
        worse = seed == 1001 and values["optim.lr"] == first
        return bowl(0.004)(values, seed) + worse

    first = math.nan
    choice, results = carried_out(random_search(), loss)
    assert len(results) == 24 + FINALISTS and choice.unsettled == ""
    first = choice.chosen["optim.lr"]
    again, results = carried_out(random_search(), loss)
    assert again.chosen["optim.lr"] != first and len(results) == 24 + FINALISTS + 1


def test_a_draw_counts_only_if_those_with_lower_rates_held():
    choice, _ = carried_out(random_search(), bowl(0.03, breaks=0.004))
    assert choice.chosen["optim.lr"] < 0.004

    def loss(values: Mapping[str, float], seed: int) -> float | None:
        lost = 0.003 < values["optim.lr"] < 0.004
        return None if lost else bowl(0.03)(values, seed)

    assert carried_out(random_search(), loss)[0].chosen["optim.lr"] < 0.004


def test_finalists_at_an_end_of_the_range_leave_it_unsettled():
    choice, _ = carried_out(random_search(), bowl(1.0))
    assert (
        choice.unsettled == "its best draws are all near the upper end of the range of optim.lr (search.span)"
    )
    choice, _ = carried_out(random_search(), bowl(0.004, breaks=0.0007))
    assert choice.unsettled.startswith("only ") and choice.unsettled.endswith(
        "of its 24 draws trained without failing"
    )
    assert carried_out(random_search(), bowl(0.004, breaks=0))[0] is None


# ---- tuning curves -------------------------------------------------------------------------------


def test_a_tuning_curve_is_that_of_opda():
    losses = list(np.random.default_rng(1).normal(2, 0.1, 24))
    curve = tuning_curve(losses)
    low, point, high = EmpiricalDistribution.confidence_bands(
        losses, CONFIDENCE, method="ld_equal_tailed", generator=np.random.default_rng(0), n_jobs=1
    )
    k = np.arange(1, 25)
    assert curve.best == list(point.quantile_tuning_curve(k, minimize=True))
    assert curve.low == list(high.quantile_tuning_curve(k, minimize=True))
    assert curve.high == list(low.quantile_tuning_curve(k, minimize=True))


def test_the_band_covers_the_true_curve():
    """The best of k uniform draws has the median 1 − 2^(−1/k), and the band must hold it for every k at once."""
    random, k = np.random.default_rng(2), np.arange(1, 13)
    true = 1 - 0.5 ** (1 / k)
    curves = [tuning_curve(list(random.random(12))) for _ in range(400)]
    covered = [(np.array(one.low) <= true).all() and (true <= np.array(one.high)).all() for one in curves]
    assert np.mean(covered) > 0.96


def test_trials_that_diverged_are_the_worst():
    curve = tuning_curve([2.0, None, 1.0, None, None])
    assert curve.best[0] == math.inf and curve.best[-1] == 1.0 and curve.low == [-math.inf] * 5


def test_curves_are_apart_where_their_bands_are():
    one, other = (tuning_curve([base + i / 100 for i in range(24)]) for base in (1.0, 2.0))
    assert separate_at(one, other) == separate_at(other, one) == [1, 2] and separate_at(one, one) == []
