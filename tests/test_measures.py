"""Measures besides the mean difference: hand-computed examples, known curves, and coverage in simulations."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.stats import norm, spearmanr, ttest_1samp

from minllm.estimates import Estimate
from minllm.study.curves import Points, common_budgets, log_budgets_to_reach
from minllm.study.intervals import mean_of, percentile_interval, resamples
from minllm.study.measures import measure
from minllm.study.report import summary, write_report
from minllm.study.report.measures import speed_up
from minllm.study.selection import LeftOut
from minllm.study.speedup import SpeedUp, _Pairs, at_equal, speed_ups
from minllm.study.stability import count_spikes, rank_test, stability
from minllm.study.superiority import newcombe, superiority, wins
from tests.comparisons import comparison, with_documents

TOKENS = np.linspace(1e5, 1e6, 10)
FLOOR, EXPONENT = 1.0, 0.4


def curve(faster: float = 1.0, shift: float = 0.0, tokens: np.ndarray = TOKENS) -> Points:
    """Return a power law above the floor, of a model that learns `faster` times as fast."""
    bpb = FLOOR + 60 * (faster * tokens) ** -EXPONENT + shift
    return Points(tokens, 6 * tokens, tokens / 1e3, bpb)


def noisy(faster: float, shared: np.ndarray, random: np.random.Generator) -> list[Points]:
    return [curve(faster, shift + 0.002 * random.standard_normal()) for shift in shared]


# ---- intervals -----------------------------------------------------------------------------------


def test_the_mean_has_students_interval():
    values = [0.1, -0.3, 0.2, 0.4]
    known = ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_of(values).value == pytest.approx(0.1)
    assert mean_of(values).interval == pytest.approx((known.low, known.high))
    assert mean_of([0.5]).interval == (-math.inf, math.inf)


def test_the_expanded_percentile_interval_of_a_mean_is_about_students():
    values = np.random.default_rng(0).standard_normal(12)
    assert percentile_interval(resamples(12) @ values, 12) == pytest.approx(
        mean_of(values).interval, abs=0.12
    )
    plain = np.quantile(resamples(12) @ values, [0.025, 0.975])
    low, high = percentile_interval(resamples(12) @ values, 12)
    assert low < plain[0] and high > plain[1]


# ---- speed-up ------------------------------------------------------------------------------------


def test_where_a_curve_reaches_a_loss():
    places = np.array([1.0, 10.0, 100.0])
    curves = np.array([[3.0, 2.0, 1.0]] * 5)
    targets = np.array([2.5, 2.0, 0.9, 3.0, 3.1])
    found = log_budgets_to_reach(places, curves, targets)
    assert found == pytest.approx([math.log(10) / 2, math.log(10), math.inf, 0.0, -math.inf])


@pytest.mark.parametrize("faster", [1.4, 1 / 1.4])
def test_the_speed_up_of_power_laws_is_recovered(faster):
    pairs = _Pairs([curve(faster, shift) for shift in range(5)], [curve(1.0, shift) for shift in range(5)])
    found = speed_ups(pairs, None)
    exact, bound = (found.to_baseline, found.to_arm) if faster > 1 else (found.to_arm, found.to_baseline)
    assert exact.value == pytest.approx(faster, rel=0.01) and exact.bound == ""
    assert exact.interval == pytest.approx((exact.value, exact.value))
    assert bound.bound == ("at least" if faster > 1 else "at most") and bound.censored == 1
    assert bound.value == pytest.approx(1.0)
    assert bound.interval == pytest.approx((1.0, math.inf) if faster > 1 else (0.0, 1.0))
    assert found.best_known is exact and found.extrapolated is None


def test_beyond_the_run_a_power_law_above_the_floor_is_continued():
    arm, baseline = [curve(1.4)] * 6, [curve(1.0)] * 6
    found = speed_ups(_Pairs(arm, baseline), FLOOR)
    assert found.extrapolated.value == pytest.approx(1.4, rel=1e-6)
    assert found.exponent == pytest.approx(EXPONENT)
    assert speed_ups(_Pairs(baseline, arm), FLOOR).extrapolated is None  # it is reached


def test_a_longer_baseline_reaches_the_loss():
    longer = np.linspace(1e5, 2e6, 20)
    found = speed_ups(_Pairs([curve(1.5)] * 5, [curve(1.0, tokens=longer)] * 5), None)
    assert found.to_arm.value == pytest.approx(1.5, rel=0.01) and found.to_arm.bound == ""


def test_a_partly_censored_interval_has_no_upper_end():
    random = np.random.default_rng(3)
    shared = np.zeros(8)
    found = speed_ups(_Pairs(noisy(1.0, shared, random), noisy(1.0, shared, random)), None).to_arm
    assert 0 < found.censored < 1 and found.interval[1] == math.inf and found.interval[0] < 1


def test_few_pairs_have_a_speed_up_without_an_interval():
    found = speed_ups(_Pairs([curve(1.4)] * 4, [curve(1.0)] * 4), None).to_baseline
    assert found.value == pytest.approx(1.4, rel=0.01) and found.interval == (0.0, math.inf)
    assert speed_up(found) == "1.4"


@pytest.mark.parametrize("faster", [1.3, 1 / 1.3])
def test_the_interval_of_the_speed_up_covers_it(faster):
    random, covered = np.random.default_rng(1), 0
    for _ in range(150):
        shared = 0.004 * random.standard_normal(9)
        found = speed_ups(_Pairs(noisy(faster, shared, random), noisy(1.0, shared, random)), None)
        low, high = found.best_known.interval
        covered += low <= faster <= high
    assert 0.88 <= covered / 150 <= 0.99


def test_how_a_speed_up_is_written():
    assert speed_up(SpeedUp(1.31, "", (1.2, 1.45), 0.0)) == "1.31 (1.2 to 1.45)"
    assert speed_up(SpeedUp(1.31, "", (1.2, math.inf), 0.1)) == "1.31 (at least 1.2)"
    assert speed_up(SpeedUp(1.0, "at least", (1.0, math.inf), 1.0)) == "at least 1"
    assert speed_up(SpeedUp(1.0, "at least", (0.98, math.inf), 0.9)) == "at least 1 (at least 0.98)"
    assert speed_up(SpeedUp(0.5, "at most", (0.0, 0.5), 1.0)) == "at most 0.5"
    assert speed_up(None) == "–"


# ---- equal budgets -------------------------------------------------------------------------------


def test_differences_at_equal_budgets_are_interpolated():
    def straight(begin: float, end: float, seconds: float, flops: float) -> Points:
        tokens = np.array([100.0, 10_000.0])
        return Points(tokens, flops * tokens, seconds * tokens, np.array([begin, end]))

    arm = [straight(3.0, 1.0, seconds=1, flops=6), straight(3.0, 1.2, seconds=1, flops=6)]
    baseline = [straight(4.0, 2.0, seconds=0.1, flops=60)] * 2
    pairs = _Pairs(arm, baseline)
    tokens, flops, seconds = (at_equal(axis, pairs) for axis in ("tokens", "flops", "seconds"))
    assert tokens.budget == 10_000 and tokens.difference.value == pytest.approx(-0.9)
    assert tokens.of_arm == tokens.of_baseline == 1
    # 60,000 FLOPs are 10,000 tokens of the arm, and 1,000 of the baseline: halfway in the logarithm
    assert flops.budget == 60_000 and flops.difference.value == pytest.approx((1.0 + 1.2) / 2 - 3.0)
    assert flops.of_arm == 1 and flops.of_baseline == pytest.approx(0.1)
    # 1,000 seconds are 1,000 tokens of the arm
    assert seconds.budget == 1000 and seconds.difference.value == pytest.approx((2.0 + 2.1) / 2 - 2.0)
    known = ttest_1samp([0.0, 0.1], 0).confidence_interval(0.95)
    assert seconds.difference.interval == pytest.approx((known.low, known.high))


def test_a_budget_before_the_first_evaluation_has_no_difference():
    early = Points(np.array([10.0]), np.array([60.0]), np.array([1.0]), np.array([3.0]))
    assert at_equal("tokens", _Pairs([early], [curve()])).difference is None


def test_points_that_all_runs_cover():
    same = [np.array([1.0, 2.0, 4.0])] * 2
    assert common_budgets(same) is same[0]
    assert common_budgets([np.array([1.0, 5.0, 9.0]), np.array([2.0, 6.0, 10.0])]).tolist() == [2, 5.5, 9]


# ---- seeds ---------------------------------------------------------------------------------------


def test_seeds_won_by_hand():
    found = wins([-0.1, -0.2, 0.1, 0.0])
    assert (found.won, found.lost, found.tied, found.share.value) == (2, 1, 1, 0.5)
    assert found.share.interval == pytest.approx((0.0676, 0.9324), abs=1e-4)  # tables of Clopper and Pearson
    assert wins([-1.0] * 6).share.interval == pytest.approx((0.025 ** (1 / 6), 1.0))


def test_the_probability_of_superiority_of_a_published_example():
    """Of statpsych's documentation of `ci.mann`, where a win is the higher value: 0.86875."""
    one = [9.4, 10.3, 58.3, 106.0, 31.0, 46.2, 12.0, 19.0, 135.0, 159.0]
    other = [14.6, 5.1, 8.1, 22.7, 6.4, 4.4, 19.0, 3.2]
    assert superiority(other, one).probability.value == pytest.approx(0.86875)
    assert superiority(one, other).probability.value == pytest.approx(1 - 0.86875)
    low, high = superiority(other, one).probability.interval
    assert 0.58 < low < 0.65 and 0.93 < high < 1


def test_superiority_at_the_ends_has_an_interval():
    found = superiority([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], [2.0, 2.1, 2.2, 2.3, 2.4, 2.5])
    assert found.probability.value == 1 and found.probability.interval[1] == 1
    assert 0.6 < found.probability.interval[0] < 0.8 and found.p == pytest.approx(2 / math.comb(12, 6))
    low, high = newcombe(0.0, 6, 6)
    assert low == 0 and high == pytest.approx(1 - found.probability.interval[0])
    assert superiority([1.0] * 4, [1.0] * 4).p == 1.0


@pytest.mark.parametrize("apart", [0.0, 1.5])
def test_the_interval_of_superiority_covers_it(apart):
    random, covered = np.random.default_rng(5), 0
    for _ in range(200):
        low, high = superiority(
            random.standard_normal(9) - apart, random.standard_normal(9)
        ).probability.interval
        covered += low <= norm.cdf(apart / math.sqrt(2)) <= high
    assert 0.9 <= covered / 200 <= 0.99


# ---- stability -----------------------------------------------------------------------------------


def test_spikes_are_counted():
    random = np.random.default_rng(0)
    losses = 4 * np.arange(1, 101) ** -0.2 + 0.01 * random.standard_normal(100)
    assert count_spikes(tuple(losses)) == 0
    losses[40] += 0.5
    losses[70:73] += 0.8  # neighbours are one spike
    assert count_spikes(tuple(losses)) == 2
    assert count_spikes(tuple(losses[:10])) is None
    assert count_spikes((2.0,) * 50) == 0


def judged(values, failed=(0, 0), finished=(20, 20), train_losses=((), ())):
    runs = tuple([Lost(losses) for losses in own] for own in train_losses)
    return stability(("a", "b"), values, runs, failed, finished)


class Lost:
    """A run of which only its training losses are known."""

    def __init__(self, losses):
        self.train_losses = tuple(losses)


def test_the_arm_with_the_larger_spread_is_less_stable():
    random = np.random.default_rng(0)
    shared = random.standard_normal(20)
    calm, wild = shared + 0.1 * random.standard_normal(20), shared + 5 * random.standard_normal(20)
    found = judged((wild, calm))
    assert (
        found.less_stable == "a" and found.spread.p < 0.001 and found.p == pytest.approx(3 * found.spread.p)
    )
    assert judged((calm, wild)).less_stable == "b"
    assert judged((calm, calm + 1)).less_stable is None


def test_the_rank_test_is_exact_for_a_few_pairs():
    assert rank_test(np.arange(6.0), -(np.arange(6.0) ** 3)) == (pytest.approx(2 / math.factorial(6)), -1)
    # of the published table for n = 5: a correlation of 0.9 or more has a probability of 0.0833, on both sides
    assert rank_test(np.arange(5.0), np.array([0.0, 1.0, 2.0, 4.0, 3.0]))[0] == pytest.approx(
        0.0833, abs=1e-4
    )
    random = np.random.default_rng(0)
    one, other = random.standard_normal(15), random.standard_normal(15)
    assert rank_test(one, other)[0] == pytest.approx(spearmanr(one, other).pvalue, abs=0.02)
    assert rank_test(one, one) == (1 / 10_001, 1)


def test_the_test_of_spread_holds_its_level_for_skewed_values():
    random, wrong = np.random.default_rng(2), 0
    for _ in range(200):
        shared = random.lognormal(size=10)
        arms = shared + random.lognormal(size=10), shared + random.lognormal(size=10)
        wrong += judged(arms).spread.p <= 0.05
    assert wrong / 200 <= 0.1


def test_more_spikes_in_every_pair_are_noticed():
    smooth = list(3 + 0.01 * np.random.default_rng(0).standard_normal(40))
    jumping = [loss + (i % 15 == 14) for i, loss in enumerate(smooth)]
    values = (np.arange(10.0), np.arange(10.0))
    found = judged(values, train_losses=([jumping] * 10, [smooth] * 10))
    assert (found.spikes.arm, found.spikes.baseline, found.spikes.p) == (2, 0, pytest.approx(2 / 2**10))
    assert found.less_stable == "a"


def test_failures_are_compared_exactly():
    found = judged(([], []), failed=(5, 0), finished=(5, 10))
    assert found.divergence.arm == 0.5 and found.divergence.p == pytest.approx(0.0325, abs=1e-4)
    assert found.less_stable is None  # 0.0325 times three is above 0.05
    assert judged(([], []), failed=(8, 0), finished=(2, 10)).less_stable == "a"


def test_a_seed_that_diverged_counts_once_and_a_crash_or_a_seed_trained_again_does_not(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 1.9}, seeds=range(6))
    cfg = one.arms[1].first.cfg
    lost = [
        LeftOut(tmp_path, "It failed.", OmegaConf.merge(cfg, {"seed": seed}), lost)
        for seed, lost in ((6, "diverged"), (6, "diverged"), (7, "diverged"), (0, "diverged"), (8, "ended"))
    ]
    (found,) = type(one)(**{**vars(one), "left_out": lost}).measures
    assert found.stability.divergence.arm == pytest.approx(2 / 8)
    assert found.stability.divergence.baseline == 0


def test_a_seed_that_diverged_is_lost(tmp_path):
    """An arm that is better where it survives hasn't won every seed."""
    one = comparison(tmp_path, {"pre": 2.0, "none": 1.9}, seeds=range(6))
    lost = []
    for arm, seeds in zip(one.arms, ([6, 8], [6, 7])):
        for seed in seeds:
            cfg = OmegaConf.merge(arm.first.cfg, {"seed": seed})
            lost.append(LeftOut(tmp_path, "It diverged.", cfg, "diverged"))
    arm, baseline = one.arms[1], one.arms[0]
    found = measure(arm, baseline, lost)
    assert (found.pairs, found.wins.won, found.wins.lost, found.wins.tied) == (6, 6, 0, 1)
    baseline = replace(baseline, runs={**baseline.runs, 7: baseline.first})
    found = measure(arm, baseline, lost)
    assert (found.wins.won, found.wins.lost, found.wins.tied) == (6, 1, 1)
    assert found.superiority.probability.value == pytest.approx((6 * 9 + 2 * 1) / 72)


# ---- reports -------------------------------------------------------------------------------------


def test_a_report_has_every_measure(tmp_path):
    one = with_documents(comparison(tmp_path, {"pre": 2.0, "none": 1.9, "sandwich": 2.0005}))
    write_report(one, tmp_path / "report", [])
    text = (tmp_path / "report" / "report.md").read_text()
    titles = ("Speed-up", "Equal budgets", "Seeds", "Stability", "Validation documents")
    assert all(f"### {title}\n" in text for title in titles)
    data = json.loads((tmp_path / "report" / "report.json").read_text())["measures"]
    assert [found["arm"] for found in data] == ["none", "sandwich"] and data[0]["wins"]["won"] == 7
    assert data[0]["speed"]["to_arm"]["bound"] == "at least"
    assert data[0]["speed"]["to_arm"]["interval"] == [pytest.approx(1.0), None]
    assert data[0]["superiority"]["probability"]["value"] == 1
    assert [each["axis"] for each in data[0]["at_equal"]] == ["tokens", "flops", "seconds"]


def test_a_terminal_has_at_most_two_more_lines_for_each_contest(tmp_path):
    one = with_documents(comparison(tmp_path, {"pre": 2.0, "none": 1.9, "sandwich": 2.0005}))
    lines = summary(one).splitlines()
    more = [line for line in lines if line.startswith("  ")]
    assert 2 <= len(more) <= 4 and "none against pre: speed-up" in more[0] and "7 of 7 seeds won" in more[0]


def test_without_curves_the_rest_is_known(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 1.9})
    (one.arms[1].runs[0].folder / "metrics.jsonl").unlink()
    assert one.measures[0].speed is None and one.measures[0].at_equal == []
    write_report(one, tmp_path / "report", [])
    assert "probability of superiority 1.00" in summary(one)


def test_arms_without_a_common_seed_have_no_measures_in_pairs(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 1.9})
    arm = one.arms[1]
    other = type(arm)(arm.name, {seed + 100: run for seed, run in arm.runs.items()})
    apart = type(one)(
        **{**vars(one), "contests": [type(one.contests[0])(other, one.arms[0], {}, one.contests[0].verdict)]}
    )
    assert apart.measures[0].wins is None and apart.measures[0].pairs == 0
    write_report(apart, tmp_path / "report", [])


def test_measures_are_the_same_twice(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 1.99})
    again = type(one)(**{name: value for name, value in vars(one).items() if name != "measures"})
    assert one.measures == again.measures and isinstance(one.measures[0].wins.share, Estimate)
