"""Looks while pairs are added: what they promise together, and what divergence does to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from minllm.study import boundaries
from minllm.study.boundaries import (
    EXACT_PAIRS,
    LEVELS,
    PATHS,
    SignFlips,
    boundary,
    sequential_p,
    spent,
    tail,
    thresholds,
)
from minllm.study.divergence import mcnemar
from minllm.study.futility import FUTILE, chance_to_settle
from minllm.study.statistics import verdicts
from tests import simulate_verdicts as simulation
from tests.simulate_verdicts import ALPHA, DIFFERENCES, LOOKS, after, before, sample

INF = math.inf


def judge(differences, looks=LOOKS, margin=0.01):
    return verdicts([list(differences)], margin=margin, looks=looks)[0]


# ---- boundaries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.3, 3.0])
def test_the_boundaries_of_many_pairs_spend_what_normal_theory_says(power, monkeypatch):
    """With 40 pairs and more Student's t is almost normal, and SciPy knows how often such looks reject."""
    looks = (40, 80, 120)
    monkeypatch.setattr(boundaries, "POWER", power)
    monkeypatch.setattr(boundaries, "statistic", lambda pairs, mean, sd, skew: mean / sd * math.sqrt(pairs))
    boundaries._null.cache_clear()
    limits = stats.norm.isf(np.array(boundary.__wrapped__(looks, 0.05, 2)) / 2)
    boundaries._null.cache_clear()
    correlation = np.sqrt(np.minimum.outer(looks, looks) / np.maximum.outer(looks, looks))
    for last in (1, 2, 3):
        normal = stats.multivariate_normal(cov=correlation[:last, :last])
        rejected = 1 - normal.cdf(limits[:last], lower_limit=-limits[:last])
        assert rejected == pytest.approx(0.05 * (last / 3) ** power, abs=0.003)


def test_no_more_is_spent_than_was_allowed_and_ties_stay_together():
    paths = np.array([[1, 5], [1, 1], [2, 1], [3, 0], [4, 2], [5, 3]], dtype=float)
    assert thresholds(paths, [1, 2]) == [-INF, 0], "two studies tie for the first place"
    assert thresholds(paths, [2, 3]) == [1, 0]
    assert thresholds(paths, [6, 6]) == [5, -INF]


def test_the_whole_error_rate_is_spent_at_the_last_look():
    assert spent(0.05, (7, 32), 32) == 0.05 and 2 / 2**7 <= spent(0.05, (7, 32), 7) < 0.05
    assert boundary((9,), 0.05, 2) == (0.05,)


def test_a_sequential_p_value_needs_all_levels_up_to_alpha():
    levels = [0.01, 0.02, 0.05, 0.1]
    assert sequential_p(lambda level: level >= 0.02, levels, 0.05) == 0.02
    assert sequential_p(lambda level: level != 0.02, levels, 0.05) == 0.05
    assert sequential_p(lambda level: level == 0.1, levels, 0.05) == 0.1
    assert sequential_p(lambda level: False, levels, 0.05) == 1


def test_sign_flips_have_the_promised_error_rate_whatever_the_sizes():
    """Of all 2^10 signs of ten sizes, at most 5 % are rejected at any of the looks."""
    sizes, looks = np.array([3.0, 0.1, 2.0, 2.0, 50.0, 1.0, 0.4, 7.0, 0.2, 1.5]), [6, 8, 9, 10]
    flips = SignFlips(sizes, looks, looks)
    allowed = [flips._allowed(0.05, pairs) for pairs in looks]
    rejected = (flips.sums <= thresholds(flips.sums, allowed)).any(axis=1)
    assert flips.rows == 2**9 and 0.02 < rejected.mean() <= 0.05


@pytest.mark.parametrize("power", [0.2, 1.0])
def test_no_boundary_is_above_the_error_rate_or_spends_more_than_it(power, monkeypatch):
    """However early most of it is spent, and although Hall's transformation makes early p-values too large."""
    looks = (7, 8, 12, 20)
    monkeypatch.setattr(boundaries, "POWER", power)
    limits = np.array(boundary.__wrapped__(looks, 0.05, 1))
    assert (limits > 0).all() and (limits <= 0.05).all()
    p_values = stats.t.cdf(boundaries._null(looks), np.array(looks) - 1)
    rejected = np.logical_or.accumulate(p_values <= limits * (1 - 1e-6), axis=1).mean(axis=0)
    assert (rejected <= [spent(0.05, looks, pairs) for pairs in looks]).all()
    assert rejected[-1] == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("count", [9, 20])
def test_leaving_out_sign_flips_near_0_changes_nothing(count, monkeypatch):
    differences = np.round(np.random.default_rng(count).normal(0.6, 1, count), 1)
    looks = [pairs for pairs in LOOKS if pairs <= count]
    some, all_ = SignFlips(differences, looks, LOOKS), SignFlips(differences, looks, LOOKS)
    few = [some.rejections(len(looks) - 1, level) for level in LEVELS]
    monkeypatch.setattr(boundaries, "FAR", 0.0)
    assert few == [all_.rejections(len(looks) - 1, level) for level in LEVELS]
    assert len(some._far) < some.rows / 4


def test_many_sign_flips_are_counted_as_if_each_were_tried():
    random = np.random.default_rng(3)
    for mean in (0.0, 0.5, 2.0):
        differences = random.normal(mean, 1, EXACT_PAIRS)
        flips = SignFlips(differences, [EXACT_PAIRS], [EXACT_PAIRS])
        counted = tail(flips.weights[0], flips.observed[0])
        assert flips.p_value(0) <= counted <= flips.p_value(0) * 1.01
    assert tail(np.full(40, 1 / 40), 1.0) == pytest.approx(2 / 2**40)
    assert tail(np.full(40, 1 / 40), 0.5) == pytest.approx(2 * stats.binom.sf(29, 40, 0.5))
    assert tail(np.zeros(20), 0.0) == 1


def test_a_look_is_the_same_when_it_is_repeated_with_more_pairs():
    differences = np.random.default_rng(2).normal(-0.2, 1, 24)
    early, late = judge(differences[:15]), judge(differences)
    assert early.word == "inconclusive" and late.looks[: len(early.looks)] == early.looks


# ---- what is promised of many studies ------------------------------------------------------------


@pytest.mark.parametrize("name", ["normal", "heavy-tailed (t, 3 df)", "of two skewed arms (exponential)"])
def test_no_difference_is_claimed_at_any_look_more_often_than_promised(name):
    count = 600
    found = after(sample(DIFFERENCES[name], 0, count, seed=1), 0.01, futility=False)
    assert found.share(1, -1) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / count)


def test_a_difference_of_the_margin_is_called_equivalent_no_more_often_than_promised():
    count = 600
    found = after(sample(DIFFERENCES["normal"], 1.0, count, seed=2), 1.0, futility=False)
    assert found.share(2) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / count)


def test_fewer_pairs_are_needed_than_with_four_looks_at_a_quarter_of_the_error_rate():
    clear, small, none = (sample(DIFFERENCES["normal"], effect, 100, seed=3) for effect in (2.0, 0.75, 0.0))
    assert after(clear, 0.1).pairs.mean() <= 0.9 * before(clear, 0.1).pairs.mean()
    assert after(none, 0.1).pairs.mean() <= 0.55 * before(none, 0.1).pairs.mean()
    assert after(small, 0.1).share(1) >= before(small, 0.1).share(1) - 0.07, "nor are there fewer findings"


def test_the_simulation_judges_as_verdicts_do():
    studies = np.concatenate([sample(DIFFERENCES["normal"], effect, 6, seed=4) for effect in (0, 0.5, 1, 2)])
    found = after(studies, 0.5, futility=False)
    words = {0: "inconclusive", 1: "worse", -1: "better", 2: "equivalent"}
    for study, pairs, claim in zip(studies, found.pairs, found.claims):
        verdict = judge(study, margin=0.5)
        assert (verdict.word, verdict.pairs) == (words[int(claim)], pairs)
        if claim in (1, -1):
            assert verdict.interval[0] * verdict.interval[1] > 0
        if claim == 2:
            assert max(map(abs, verdict.interval)) < 0.75


def test_the_interval_where_a_study_stops_covers_the_difference():
    studies = sample(DIFFERENCES["normal"], 1.0, 80, seed=5)
    ends = [judge(study).interval for study in studies]
    assert np.mean([low <= 1.0 <= high for low, high in ends]) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 80)


def test_what_is_settled_stays_settled_by_its_own_pairs():
    clear = [-0.1 - i / 1000 for i in range(LOOKS[0])]
    early, late = judge(clear), judge([*clear, *[0.3] * 10])
    assert early.word == "better" and early == late


# ---- futility ------------------------------------------------------------------------------------


def test_the_chance_to_settle_is_what_many_continuations_show():
    seen = np.array([0.5, -0.6, 0.4, 0.1, 1.2, -0.2, 0.9, 0.3])
    limits = ([0.05], [0.05])
    chance = chance_to_settle(np.tile(seen, (20, 1)), [16], *limits, 0.01, np.random.default_rng(0)).mean()
    # the same by hand: the posterior, then 8 more pairs, then Student's t
    random, shape = np.random.default_rng(1), (2000, 1)
    sigma = seen.std(ddof=1) * np.sqrt(7 / random.chisquare(7, shape))
    more = random.normal(random.normal(seen.mean(), sigma / math.sqrt(8)), sigma, (2000, 8))
    settled = stats.ttest_1samp(np.hstack([np.tile(seen, shape), more]), 0, axis=1).pvalue <= 0.05
    assert chance == pytest.approx(settled.mean(), abs=0.05)


def test_a_contest_is_given_up_only_if_looks_remain_that_are_unlikely_to_settle_it():
    hopeless = [0.1, -0.1, 0.11, -0.11, 0.1, -0.1, 0.1, -0.1]
    verdict = judge(hopeless, looks=(6, 8, 10), margin=0.001)
    assert verdict.futile and verdict.word == "inconclusive"
    assert (
        f"up to 10 pairs, are unlikely to settle it (chance below {100 * FUTILE:.0f} %)" in verdict.settling
    )
    assert not judge(hopeless, looks=(6, 8), margin=0.001).futile
    assert not judge(hopeless[:5], looks=(6, 8), margin=0.001).futile


# ---- divergence ----------------------------------------------------------------------------------


def test_the_test_of_ranks_is_scipys():
    finite = [0.3, -0.2, 0.7, 0.1, 0.4, 0.9, -0.05]
    verdict = judge([*finite, INF], looks=())
    oracle = stats.wilcoxon([*finite, 99.0], method="exact").pvalue
    assert verdict.p_sign_flip == verdict.p_difference == pytest.approx(oracle)
    assert verdict.interval == (-INF, INF) and verdict.diverged == (1, 0) and verdict.p_t == 1
    assert verdict.difference == pytest.approx(np.mean(finite))


def test_an_arm_that_often_diverges_is_worse_and_the_other_way_round():
    survived = [-0.1, -0.2, -0.15, -0.12]
    lost = judge([INF, INF, *survived[:1], INF, INF, INF, *survived[1:3], *[INF] * 10])
    won = judge([-INF, -INF, *[-one for one in survived[:1]], -INF, -INF, -INF, 0.2, 0.15, *[-INF] * 10])
    assert lost.word == "worse" and won.word == "better" and lost.pairs == won.pairs < 18


def test_who_diverged_more_often_is_never_better_and_nobody_is_equivalent():
    better = judge([INF, *[-0.2 - i / 1000 for i in range(27)]])
    assert (better.word, better.looks[-1].word) == ("inconclusive", "inconclusive")
    assert better.p_difference <= 0.05, "the ranks alone would say so"
    assert judge([INF, *[1e-6, -1e-6] * 6], margin=0.5).word == "inconclusive"


def test_pairs_in_which_both_diverged_are_ties():
    differences = [0.2, 0.3, 0.0, 0.25, 0.2, 0.0, 0.3, 0.22, 0.31]
    assert judge([*differences, INF], looks=()).p_sign_flip == pytest.approx(2 / 2**8)


def test_no_difference_in_divergence_is_rarely_called_one():
    random, wrong = np.random.default_rng(6), 0
    for _ in range(60):
        arms = np.where(random.random((2, 14)) < 0.2, INF, random.normal(size=(2, 14)))
        with np.errstate(invalid="ignore"):
            differences = np.where(np.isinf(arms).all(0), 0.0, arms[0] - arms[1])
        wrong += judge(differences, looks=(7, 10, 14)).word in ("better", "worse")
    assert wrong / 60 <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 60)


def test_mcnemar_is_exact():
    assert mcnemar(2, 0) == 0.5 and mcnemar(6, 0) == pytest.approx(2 / 2**6) and mcnemar(0, 0) == 1
    assert mcnemar(7, 1) == pytest.approx(2 * 9 / 2**8)


def test_the_simulated_studies_have_mean_0_and_sd_1():
    for draw in DIFFERENCES.values():
        drawn = draw(np.random.default_rng(0), (100_000, 4))
        assert drawn.mean() == pytest.approx(0, abs=0.01) and drawn.std() == pytest.approx(1, abs=0.05)
    assert PATHS >= 100_000 and simulation.BEFORE == (9, 13, 19, 28)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("looks", [(), (1,), (1, 2, 3), (2, 3, 9), (6, 7, 8, 12)])
def test_odd_differences_have_verdicts_too(looks):
    odd = [[], [0.1], [0.1, 0.2], [INF], [INF, -INF], [0.0] * 3, [INF] * 3, [0.1] * 8, [1e-30] * 8]
    for verdict in verdicts([*odd, [*[0.1] * 7, INF]], margin=0.01, looks=looks):
        assert "nan" not in repr(verdict)
