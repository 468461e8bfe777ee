"""Measures besides the mean difference: hand-computed examples, known curves, and coverage in simulations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.stats import norm, spearmanr, ttest_1samp
from scipy.stats import t as student

from minllm.runs.documents import DOCUMENTS, DocumentLosses
from minllm.study.curves import Points, common_points, reached
from minllm.study.documents import two_way
from minllm.study.intervals import Estimate, mean_of, middle, resamples
from minllm.study.report import summary, write_report
from minllm.study.report.measures import conclusion, speed_up
from minllm.study.selection import LeftOut
from minllm.study.speedup import SpeedUp, _Pairs, at_equal, speed_ups
from minllm.study.stability import count_spikes, rank_test, stability
from minllm.study.superiority import newcombe, superiority, wins
from tests.comparisons import comparison

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
    assert middle(resamples(12) @ values, 12) == pytest.approx(mean_of(values).interval, abs=0.12)
    plain = np.quantile(resamples(12) @ values, [0.025, 0.975])
    low, high = middle(resamples(12) @ values, 12)
    assert low < plain[0] and high > plain[1]


# ---- speed-up ------------------------------------------------------------------------------------


def test_where_a_curve_reaches_a_loss():
    places = np.array([1.0, 10.0, 100.0])
    curves = np.array([[3.0, 2.0, 1.0]] * 5)
    targets = np.array([2.5, 2.0, 0.9, 3.0, 3.1])
    found = reached(places, curves, targets)
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
    assert common_points(same) is same[0]
    assert common_points([np.array([1.0, 5.0, 9.0]), np.array([2.0, 6.0, 10.0])]).tolist() == [2, 5.5, 9]


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
    assert rank_test(np.arange(6.0), np.arange(6.0) ** 3) == pytest.approx(2 / math.factorial(6))
    # of the published table for n = 5: a correlation of 0.9 or more has a probability of 0.0833, on both sides
    assert rank_test(np.arange(5.0), np.array([0.0, 1.0, 2.0, 4.0, 3.0])) == pytest.approx(0.0833, abs=1e-4)
    random = np.random.default_rng(0)
    one, other = random.standard_normal(15), random.standard_normal(15)
    assert rank_test(one, other) == pytest.approx(spearmanr(one, other).pvalue, abs=0.02)
    assert rank_test(one, one) == 1 / 10_001


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
    assert found.failures.arm == 0.5 and found.failures.p == pytest.approx(0.0325, abs=1e-4)
    assert found.less_stable is None  # 0.0325 times three is above 0.05
    assert judged(([], []), failed=(8, 0), finished=(2, 10)).less_stable == "a"


def test_an_arm_that_fails_counts_its_seeds_once(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 1.9}, seeds=range(6))
    cfg = one.arms[1].first.cfg
    lost = [
        LeftOut(tmp_path, "It crashed.", OmegaConf.merge(cfg, {"seed": seed}), failed=True)
        for seed in (6, 6, 7, 0)
    ]
    (found,) = type(one)(**{**vars(one), "left_out": lost}).measures
    assert found.stability.failures.arm == pytest.approx(2 / 8) and found.stability.failures.baseline == 0


# ---- documents -----------------------------------------------------------------------------------


def test_two_way_by_hand():
    """Two seeds and two documents of one byte: the mean is 5, seeds ±1, documents ±2, and nothing remains."""
    found = two_way(np.array([[2.0, 6.0], [4.0, 8.0]]), np.ones(2))
    t = 12.7062
    assert found.over_seeds.value == 5 and found.documents == 2 and found.won == 0
    assert found.over_seeds.interval == pytest.approx((5 - t, 5 + t), rel=1e-4)
    assert found.over_documents.interval == pytest.approx((5 - 2 * t, 5 + 2 * t), rel=1e-4)
    # the variances 1 and 4 add up; the mean squares are 4 and 16, with Satterthwaite's degrees of freedom
    half = math.sqrt(5) * student.ppf(0.975, 20**2 / (4**2 + 16**2))
    assert found.over_both.interval == pytest.approx((5 - half, 5 + half))


def test_larger_documents_weigh_more():
    bits, sizes = np.array([[10.0, 0.0]] * 3), np.array([10.0, 90.0])
    assert two_way(bits, sizes).over_seeds.value == pytest.approx(0.1)


def simulated(random, seeds=8, documents=120, mean=-0.03, sd=(0.01, 0.05, 0.05)):
    sizes = random.integers(200, 1200, documents).astype(float)
    rates = mean + sd[0] * random.standard_normal((seeds, 1)) + sd[1] * random.standard_normal(documents)
    return (rates + sd[2] * random.standard_normal((seeds, documents))) * sizes, sizes


def test_the_interval_is_that_of_resampling_seeds_and_documents():
    random = np.random.default_rng(0)
    bits, sizes = simulated(random, seeds=30, documents=60, sd=(0.02, 0.15, 0.02))
    of_seeds = random.multinomial(30, np.full(30, 1 / 30), 4000)
    of_documents = random.multinomial(60, np.full(60, 1 / 60), 4000)
    draws = ((of_seeds / 30 @ bits) * of_documents).sum(1) / (of_documents @ sizes)
    low, high = two_way(bits, sizes).over_both.interval
    assert (high - low) / np.ptp(np.quantile(draws, [0.025, 0.975])) == pytest.approx(1, abs=0.1)


def test_only_the_interval_over_both_covers_the_mean_of_other_seeds_and_texts():
    random, covered = np.random.default_rng(4), np.zeros(3)
    for _ in range(200):
        found = two_way(*simulated(random))
        each = (found.over_seeds, found.over_documents, found.over_both)
        covered += [one.interval[0] <= -0.03 <= one.interval[1] for one in each]
    seeds, documents, both = covered / 200
    assert seeds < 0.9 and documents < 0.9 and 0.9 <= both <= 0.99


def test_one_seed_or_one_document_has_no_interval_of_both():
    bits, sizes = simulated(np.random.default_rng(0))
    one_seed, one_document = two_way(bits[:1], sizes), two_way(bits[:, :1], sizes[:1])
    assert one_seed.over_seeds.interval == one_seed.over_both.interval == (-math.inf, math.inf)
    assert math.isfinite(one_seed.over_documents.interval[0])
    assert one_document.over_both.interval == one_document.over_documents.interval == (-math.inf, math.inf)
    assert conclusion(one_seed) == "too few seeds or documents"


def recorded(one, spread_of_documents=0.0):
    """Write the file of each run's documents, which differ between arms by the same amount up to a spread."""
    random = np.random.default_rng(0)
    sizes = random.integers(300, 900, 40)
    for arm in one.arms:
        shape = 1 + spread_of_documents * random.standard_normal(40)
        for run in arm.runs.values():
            nats = sizes * shape
            nats *= run.summary["val_bpb"] * math.log(2) * sizes.sum() / nats.sum()
            (run.folder / DOCUMENTS).write_bytes(DocumentLosses(nats, sizes).to_bytes())
    return one


@pytest.mark.parametrize("spread, said", [(0.0, "better on such texts"), (0.3, "not shown for other texts")])
def test_better_on_this_text_and_on_such_texts_are_told_apart(tmp_path, spread, said):
    one = recorded(comparison(tmp_path, {"pre": 2.0, "none": 1.9}), spread)
    (found,) = one.measures
    assert found.by_document.documents == 40
    assert found.by_document.over_seeds.value == pytest.approx(one.contests[0].verdict.difference, abs=1e-5)
    assert found.by_document.over_seeds.interval == pytest.approx(one.contests[0].verdict.interval, abs=1e-5)
    assert said in summary(one).lower()
    write_report(one, tmp_path / "report", [])
    assert all(said in (tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))


def test_a_run_of_an_older_version_has_no_documents(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 1.9})
    assert one.measures[0].by_document is None and "none-0 has no loss" in one.measures[0].no_documents


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "isn't a safetensors file"),
        (b"\xff" * 100, "isn't a safetensors file"),
        (DocumentLosses(np.ones(3), np.ones(3)).to_bytes()[:-4], "isn't a safetensors file"),
        (DocumentLosses(np.array([1.0, math.nan]), np.ones(2)).to_bytes(), "out of range"),
        (DocumentLosses(np.ones(3), np.ones(2)).to_bytes(), "type and shape"),
        (DocumentLosses(np.ones(0), np.ones(0)).to_bytes(), "out of range"),
        (DocumentLosses(np.ones(3), np.ones(3)).to_bytes(), "but its summary.json"),
    ],
)
def test_a_damaged_file_of_documents_is_named(tmp_path, content, said):
    one = recorded(comparison(tmp_path, {"pre": 2.0, "none": 1.9}))
    folder = one.arms[0].runs[2].folder
    (folder / DOCUMENTS).write_bytes(content)
    found = one.measures[0]
    assert found.by_document is None and said in found.no_documents and str(folder) in found.no_documents


def test_documents_of_other_sizes_are_not_compared(tmp_path):
    one = recorded(comparison(tmp_path, {"pre": 2.0, "none": 1.9}))
    run = one.arms[1].runs[3]
    known = run.documents
    other = DocumentLosses(known.nats[::-1], known.bytes[::-1])
    (run.folder / DOCUMENTS).write_bytes(other.to_bytes())
    del vars(run)["documents"]
    assert "different sizes" in one.measures[0].no_documents


# ---- reports -------------------------------------------------------------------------------------


def test_a_report_has_every_measure(tmp_path):
    one = recorded(comparison(tmp_path, {"pre": 2.0, "none": 1.9, "sandwich": 2.0005}))
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
    one = recorded(comparison(tmp_path, {"pre": 2.0, "none": 1.9, "sandwich": 2.0005}))
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
