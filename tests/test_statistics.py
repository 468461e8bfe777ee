"""The four words keep their promises in simulated studies, and the pieces agree with SciPy's."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from minllm import estimates
from minllm.study import statistics
from minllm.study.boundaries import EXACT_PAIRS
from minllm.study.power import Guess, power_of_difference, power_of_equivalence, power_of_t
from minllm.study.sample import sample_of
from minllm.study.statistics import LEAST_PAIRS, noise_floor, spread, verdicts

STUDIES = 3_000
MARGIN = 0.5  # with a standard deviation of 1
CHANCE = 3 * math.sqrt(0.05 * 0.95 / STUDIES)  # three standard errors of a share of 5 % among the studies


def studies(mean, pairs, count=STUDIES, arms=1, sd=1.0, seed=0):
    """Return the differences of many studies' arms: each arm less the study's one baseline, so they're correlated."""
    random = np.random.default_rng(seed)
    runs = random.normal(0, sd / math.sqrt(2), size=(count, arms + 1, pairs))
    return (mean + runs[:, 1:] - runs[:, :1]).tolist()


def words(mean, pairs, margin=MARGIN, **options):
    """Return how often each word is said of a single arm, as a share."""
    said = Counter(verdicts(study, margin=margin)[0].word for study in studies(mean, pairs, **options))
    return {word: times / said.total() for word, times in said.items()}


def judge(*differences, margin=MARGIN, **options):
    return verdicts([list(differences)], margin=margin, **options)[0]


# What is promised of many studies


@pytest.fixture
def words_only(monkeypatch):
    """Judge by words alone in the whole test."""
    leave_out_seeds(monkeypatch)


def leave_out_seeds(monkeypatch):
    """Leave out how many seeds would settle it: more than half of the time, and no word depends on it."""
    monkeypatch.setattr(statistics._Trial, "_seeds_to_settle", lambda trial, sample: None)


@pytest.mark.parametrize("pairs", [6, 8])
def test_no_difference_is_rarely_called_one_and_the_interval_covers_it(pairs, words_only):
    found = [verdicts(study, margin=MARGIN)[0] for study in studies(0, pairs)]
    said = Counter(verdict.word for verdict in found)
    assert said["better"] <= 0.025 * STUDIES
    assert said["worse"] <= 0.025 * STUDIES
    covered = sum(verdict.interval[0] <= 0 <= verdict.interval[1] for verdict in found)
    assert 0.94 <= covered / STUDIES <= 0.97


def test_of_three_arms_that_differ_in_nothing_rarely_any_is_called_different(words_only):
    """Without Holm's correction it would be in 9 % of the studies."""
    false = sum(
        any(verdict.word in ("better", "worse") for verdict in verdicts(study, margin=MARGIN))
        for study in studies(0, 8, count=1000, arms=3)
    )
    assert false <= 0.05 * 1000


@pytest.mark.parametrize("sd", [0.1, 1.0])
def test_a_difference_of_the_margin_is_rarely_called_equivalent(sd, words_only):
    assert words(MARGIN, 8, sd=sd).get("equivalent", 0) <= 0.05 + CHANCE


def test_of_three_arms_as_far_away_as_the_margin_rarely_any_is_called_equivalent(words_only):
    """Without Holm's correction it would be in 10 % of the studies."""
    false = sum(
        any(verdict.word == "equivalent" for verdict in verdicts(study, margin=MARGIN))
        for study in studies(MARGIN, 8, count=1000, arms=3, sd=0.1)
    )
    assert false <= (0.05 + CHANCE) * 1000


def claims_a_difference(study, looks, corrected):
    plans = [{"looks": looks}] if corrected else [{}] * len(looks)
    ends = [None] if corrected else looks
    found = (verdicts([study[:end]], margin=0.01, **plan)[0].word for end, plan in zip(ends, plans))
    return any(word in ("better", "worse") for word in found)


def test_who_looks_three_times_is_no_more_often_wrong(words_only, monkeypatch):
    monkeypatch.setattr(statistics._Trial, "_chance", lambda trial, level: None)
    drawn = [study[0] for study in studies(0, 13, count=STUDIES // 5)]
    shares = [
        sum(claims_a_difference(study, (8, 10, 13), corrected) for study in drawn) / len(drawn)
        for corrected in (True, False)
    ]
    assert shares[0] <= 0.05 + math.sqrt(5) * CHANCE / 3
    assert shares[1] > 0.06  # the reason for the correction


@pytest.mark.parametrize(
    "draw",
    [
        lambda random, shape: random.laplace(size=shape),
        lambda random, shape: random.standard_t(2, size=shape),
        lambda random, shape: random.choice((-1.0, 0.0, 1.0), size=shape),
    ],
    ids=["laplace", "heavy tails", "ties"],
)
def test_differences_that_are_not_normal_are_rarely_called_one(draw, words_only):
    drawn = draw(np.random.default_rng(0), (STUDIES // 4, 8)).tolist()
    false = sum(verdicts([study], margin=0.01)[0].word in ("better", "worse") for study in drawn)
    assert false <= 0.05 * len(drawn)


@pytest.mark.parametrize("mean", [-3.0, -1.8, -1.45, -1.2, -1.0])
@pytest.mark.parametrize("arms", [1, 3])
def test_a_clear_difference_is_found_as_often_as_promised(mean, arms, monkeypatch):
    others = [[1.0, -1.0] * 4] * (arms - 1)
    promised = verdicts([pilot(mean), *others], margin=0.01)[0].seeds_to_settle
    leave_out_seeds(monkeypatch)
    drawn = studies(mean, promised, count=500)
    said = [verdicts([*study, *others], margin=0.01)[0].word for study in drawn]
    # Where there are few pairs, one more is much: 7 may find far more than the 80 % that 6 just miss.
    assert 0.76 <= said.count("better") / len(drawn) <= (0.9 if promised > 12 else 1)


@pytest.mark.parametrize("mean, margin", [(0.0, 1.0), (0.2, 0.9)])
def test_equivalence_is_found_as_often_as_promised(mean, margin, monkeypatch):
    promised = judge(*pilot(mean), margin=margin).seeds_to_settle
    leave_out_seeds(monkeypatch)
    found = words(mean, promised, margin=margin, count=1500)["equivalent"]
    assert 0.77 <= found <= 0.87


def pilot(mean, sd=1.0):
    """Return two differences with exactly this mean and standard deviation."""
    return [mean - sd / math.sqrt(2), mean + sd / math.sqrt(2)]


# What SciPy says


@pytest.mark.parametrize("pairs", [2, 5, 6, 9, 13])
def test_the_tests_of_differences_without_skewness_are_scipys(pairs):
    half = np.random.default_rng(pairs).normal(0, 0.1, size=pairs // 2)
    differences = np.concatenate([half, -half, [0.0] * (pairs % 2)]) + 0.03
    verdict = judge(*differences, margin=0.05)
    oracle = stats.ttest_1samp(differences, 0)
    assert verdict.p_t == pytest.approx(oracle.pvalue)
    assert verdict.interval == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    sides = (("greater", -0.05), ("less", 0.05))
    one_sided = [stats.ttest_1samp(differences, at, alternative=side).pvalue for side, at in sides]
    assert verdict.p_equivalence == pytest.approx(max(one_sided))
    assert verdict.p_sign_flip == pytest.approx(permuted(differences))


@pytest.mark.parametrize("pairs", [5, 9, 20])
def test_skewness_is_scipys_and_only_widens_the_interval(pairs):
    differences = np.random.default_rng(pairs).exponential(size=pairs) - 0.9
    verdict, oracle = judge(*differences), stats.ttest_1samp(differences, 0)
    low, high = oracle.confidence_interval(0.95)
    assert verdict.p_t >= oracle.pvalue * (1 - 1e-9) and verdict.interval[0] <= low + 1e-9
    assert verdict.interval[1] > high + 0.01, (
        "a large value that would move the mean up may not have been drawn yet"
    )
    sample = sample_of(differences.tolist(), 0.0)
    assert sample.skew == pytest.approx(stats.skew(differences, bias=False))
    for end in verdict.interval:  # what isn't rejected is inside
        for inside, at in ((True, 0.99), (False, 1.01)):
            tried = differences - differences.mean() - at * (end - differences.mean())
            assert (judge(*tried).p_t > 0.05) == inside


def permuted(differences):
    """Return scipy's p-value from all sign flips."""
    options = {"permutation_type": "samples", "n_resamples": np.inf, "vectorized": True}
    return stats.permutation_test((differences,), np.mean, **options).pvalue


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_ties_count_as_scipys_do(differences):
    assert judge(*differences).p_sign_flip == pytest.approx(permuted(np.array(differences, dtype=float)))


def test_many_sign_flips_are_counted_and_few_are_all_tried():
    differences = np.random.default_rng(0).normal(0.8, 1, EXACT_PAIRS + 1)
    counted, tried = judge(*differences), judge(*differences[1:])
    exact = permuted(differences)
    assert exact * (1 - 1e-9) <= counted.p_sign_flip <= 1.01 * exact, "rounding may only enlarge it"
    assert tried.p_sign_flip == pytest.approx(permuted(differences[1:]))


def guess(mean, level, least=6):
    return Guess(2, mean, 1.0, margin=0.4, level=level, equivalence_level=level, least=least)


def test_the_power_of_one_t_test_is_what_simulation_and_scipy_find():
    pairs, distance, level = 9, 1.0, 0.025
    power = power_of_t(distance, 1.0, pairs, level)
    limit = stats.t.ppf(1 - level, pairs - 1)
    assert power == pytest.approx(stats.nct.sf(limit, pairs - 1, distance * math.sqrt(pairs)))
    drawn = np.random.default_rng(0).normal(distance, 1, size=(STUDIES, pairs))
    found = stats.ttest_1samp(drawn, 0, axis=1, alternative="greater").pvalue <= level
    assert power == pytest.approx(found.mean(), abs=0.015)


@pytest.mark.parametrize("level", [1e-4, 1e-3, 0.05])
def test_the_power_is_a_number_and_never_falls_as_pairs_are_added(level):
    least = next(pairs for pairs in range(6, 99) if 2 / 2**pairs <= level)
    for mean in (0.0, 0.01, 0.3, 2.0, 1e9):
        for power in (power_of_difference, power_of_equivalence):
            grown = [power(guess(mean, level), pairs) for pairs in range(least, 1001)]
            assert all(b >= a - 1e-9 for a, b in zip(grown, grown[1:]))


def test_holm_by_hand():
    assert estimates.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert estimates.holm([0.5, 0.9, 0.02]) == pytest.approx([1, 1, 0.06])
    assert estimates.holm([]) == []


def test_each_family_of_p_values_is_adjusted_over_the_arms():
    random = np.random.default_rng(1)
    arms = random.normal(0.4, 1, size=(3, 8)).tolist()
    alone = [judge(*arm) for arm in arms]
    together = verdicts(arms, margin=MARGIN)
    for name in ("p_difference", "p_equivalence"):
        holm = estimates.holm([getattr(verdict, name) for verdict in alone])
        assert [getattr(verdict, name) for verdict in together] == holm
    assert all(one.p_difference == max(one.p_t, one.p_sign_flip) for one in alone)


# What changes nothing

figures = st.floats(-2, 2).map(lambda x: round(x, 3))
arms_of_pairs = st.lists(st.lists(figures, min_size=0, max_size=9), min_size=1, max_size=3)


def numbers(verdict):
    return [verdict.p_t, verdict.p_sign_flip, verdict.p_equivalence, verdict.seeds_to_settle, verdict.pairs]


@given(arms_of_pairs)
def test_with_all_signs_flipped_better_is_worse(arms):
    opposite = {"better": "worse", "worse": "better"}
    there = verdicts(arms, margin=MARGIN)
    back = verdicts([[-difference for difference in arm] for arm in arms], margin=MARGIN)
    assert [opposite.get(verdict.word, verdict.word) for verdict in there] == [one.word for one in back]
    assert list(map(numbers, there)) == list(map(numbers, back))
    assert [one.interval for one in there] == [(-one.interval[1], -one.interval[0]) for one in back]


@given(arms_of_pairs, st.sampled_from([2**-20, 0.25, 1024]))
def test_the_unit_is_of_no_matter(arms, unit):
    scaled = verdicts([[difference * unit for difference in arm] for arm in arms], margin=MARGIN * unit)
    for here, there in zip(verdicts(arms, margin=MARGIN), scaled):
        assert (here.word, numbers(here)) == (there.word, numbers(there))
        assert (here.difference or 0.0) * unit == (there.difference or 0.0)


@given(arms_of_pairs, st.randoms(use_true_random=False))
def test_the_order_of_pairs_is_of_no_matter(arms, random):
    shuffled = [random.sample(arm, len(arm)) for arm in arms]
    assert verdicts(arms, margin=MARGIN) == verdicts(shuffled, margin=MARGIN)


@given(arms_of_pairs, st.sampled_from([(), (6,), (4, 6, 8), (7, 12)]))
def test_nothing_is_ever_nan_and_what_is_not_settled_needs_more_pairs(arms, looks):
    for verdict in verdicts(arms, margin=MARGIN, looks=looks):
        assert "nan" not in repr(verdict)
        if verdict.word != "inconclusive":
            assert verdict.seeds_to_settle == verdict.pairs >= LEAST_PAIRS
        elif verdict.seeds_to_settle is not None:
            assert verdict.seeds_to_settle > verdict.pairs


@given(st.lists(figures, min_size=6, max_size=8))
def test_who_looks_more_often_is_never_surer(arm):
    first, last = judge(*arm), judge(*arm, looks=(len(arm), 12))
    assume(first.word == "inconclusive")
    assert last.word == "inconclusive"
    assert last.interval[0] <= first.interval[0] and last.interval[1] >= first.interval[1]


# The edges, and what a person reads


def test_better_reads_like_a_sentence():
    verdict = judge(-0.013, -0.010, -0.014, -0.012, -0.016, -0.009, margin=0.002)
    assert verdict.word == "better"
    assert verdict.why == ("6 pairs: 0.0123 bits per byte lower (95 % interval 0.0096 to 0.0151), p = 0.031.")


def test_a_real_difference_below_the_margin_is_equivalent_and_says_so():
    verdict = judge(0.001, 0.0012, 0.0011, 0.0009, 0.001, 0.0011, margin=0.005)
    assert (verdict.word, verdict.seeds_to_settle) == ("equivalent", 6)
    assert verdict.why.endswith(
        "The difference is less than 0.0050 either way (p < 0.0001): a real difference, but too small to matter."
    )
    unreal = judge(0.001, -0.0012, 0.0011, -0.0009, 0.001, -0.0011, margin=0.005)
    assert unreal.word == "equivalent" and "real" not in unreal.why


def test_an_uncertain_difference_says_so():
    verdict = judge(*[0.001, -0.002] * 4, margin=0.0006)
    assert verdict.word == "inconclusive"
    assert verdict.why == (
        "8 pairs: 0.0005 bits per byte lower (95 % interval 0.0018 lower to 0.0008 higher), p = 0.52."
        " Neither a difference nor equivalence within 0.0006 (p = 0.43) is established."
    )


@pytest.mark.parametrize("pairs", range(6))
def test_fewer_than_six_pairs_never_suffice(pairs):
    verdict = judge(*[-0.2, -0.2001, -0.2, -0.1999, -0.2][:pairs], margin=0.001)
    assert verdict.word == "inconclusive"
    assert verdict.why.endswith("The sign-flip test needs at least 6 pairs.")
    assert verdict.seeds_to_settle == (6 if pairs >= 2 else None)


@pytest.mark.parametrize(
    "arms, looks, needed",
    [(2, (), 7), (20, (), 10), (2, range(6, 33), 8), (3, range(6, 33), 9), (2, (6, 10, 20), 10)],
)
def test_more_arms_and_looks_need_more_pairs(arms, looks, needed):
    clear = [-0.2, -0.21, -0.19, -0.2, -0.22, -0.18, -0.2]
    some = verdicts([clear[:6]] * arms, margin=0.001, looks=looks)[0]
    assert f"at least {needed} pairs with this many contests and looks" in some.why
    assert some.seeds_to_settle == needed and not some.futile
    for pairs in (needed - 1, needed):
        found = {one.word for one in verdicts([(clear * 2)[:pairs]] * arms, margin=0.001, looks=looks)}
        assert found == {"better" if pairs == needed else "inconclusive"}


@pytest.mark.parametrize("noise", [0, 1e-16])
def test_differences_without_spread(noise):
    wobble = [noise, -noise, noise, noise, -noise, 0]
    same, small, large = ([middle + w for w in wobble] for middle in (0, 0.001, -0.1))
    found = [judge(*arm, margin=0.005) for arm in (same, small, large)]
    assert [verdict.word for verdict in found] == ["equivalent", "equivalent", "better"]
    assert found[0].p_t == found[0].p_sign_flip == 1
    assert found[2].interval == pytest.approx((-0.1, -0.1))


@pytest.mark.parametrize("differences", [[], [0.1]])
def test_no_pair_and_one_pair_know_nothing(differences):
    verdict = judge(*differences)
    assert verdict.interval == (-math.inf, math.inf)
    assert verdict.p_t == verdict.p_sign_flip == verdict.p_equivalence == 1
    assert verdict.difference == (sum(differences) if differences else None)


def test_what_a_thousand_seeds_would_not_settle_has_no_number():
    assert judge(*pilot(0.001), margin=0.002).seeds_to_settle is None


def test_arms_may_have_different_numbers_of_pairs_and_there_may_be_none():
    assert [verdict.pairs for verdict in verdicts([[], [0.1], [0.1, 0.2]], margin=1)] == [0, 1, 2]
    assert verdicts([], margin=1) == []


def test_pairs_in_which_both_diverged_are_ties_and_allow_no_equivalence():
    small = [0.001, -0.002, 0.001, 0.0015, -0.001, 0.0005, -0.001]
    assert judge(*small).word == "equivalent"
    both = judge(*small, math.nan)
    assert both.word == "inconclusive" and both.difference == pytest.approx(sum(small) / 7)
    assert both.diverged == (0, 0) and both.pairs == 8 and both.p_equivalence == both.p_t == 1
    assert judge(*[-1.0 - one for one in small], math.nan).p_sign_flip == 2 / 2**7
    assert judge(*[math.nan] * 8).difference is None


@pytest.mark.parametrize(
    "option", [{"margin": 0}, {"margin": math.nan}, {"alpha": 1}, {"looks": [0]}, {"looks": [8, 6]}]
)
def test_what_is_out_of_range_is_refused(option):
    with pytest.raises(ValueError, match="out of range"):
        judge(0.1, **option)


def test_a_verdict_can_be_written_as_json():
    written = dataclasses.asdict(judge(*[0.1] * 6))
    assert written.pop("unproved") is None
    assert {type(value) for value in written.values()} <= {str, int, bool, float, tuple}
    assert {type(value) for value in written["looks"][0].values()} <= {str, int, float, tuple}


# The noise of one arm


def test_the_noise_floor_covers_95_of_100_pairs_of_runs():
    random = np.random.default_rng(0)
    known = [noise_floor(values) for values in random.normal(1, 0.1, size=(STUDIES, 5)).tolist()]
    apart = np.abs(np.diff(random.normal(1, 0.1, size=(STUDIES, 2)))[:, 0])
    assert np.mean(apart <= known) == pytest.approx(0.95, abs=0.01)
    assert noise_floor([1.0, 1.2]) == pytest.approx(12.7062 * math.sqrt(0.02) * math.sqrt(2), rel=1e-4)
    assert noise_floor([1.0]) is None and noise_floor([]) is None


def test_the_spread_of_values():
    assert spread([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1)))
    assert spread([3.0]) == (3.0, 0.0)
    with pytest.raises(ValueError, match="no values"):
        spread([])
