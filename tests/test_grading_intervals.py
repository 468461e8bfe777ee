"""Intervals of grades: they cover as often as they say, also where samples of a beginning resemble each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from minllm.grading.grades import Measure, Values
from minllm.grading.intervals import estimate, linearised

SHARE = Measure("stories", "stories", "share", "higher", 1.0)
GRADE = Measure("grammar", "grammar", "out of 10", "higher", 10.0)
LENGTH = Measure("unbroken", "unbroken", "characters", "higher", None)


def of(measure: Measure, amounts, groups=None, counts=None):
    counts = np.ones(len(amounts)) if counts is None else counts
    return estimate(measure, Values(amounts, counts), range(len(amounts)) if groups is None else groups)


@pytest.mark.parametrize("successes", [0, 3, 50, 99, 100])
def test_a_share_of_independent_samples_has_nearly_the_exact_interval(successes):
    low, high = of(SHARE, [1.0] * successes + [0.0] * (100 - successes)).interval
    exact = stats.binomtest(successes, 100).proportion_ci()
    assert low == pytest.approx(exact.low, abs=0.01) and high == pytest.approx(exact.high, abs=0.01)
    assert (low, high) != (low, low) and 0 <= low <= successes / 100 <= high <= 1
    if successes in (0, 100):
        assert (low, high) == pytest.approx(tuple(exact)), "at the edge it is exact"


def test_no_values_and_few_groups():
    assert of(SHARE, [0.0, 0.0], counts=[0, 0]) is None
    assert of(LENGTH, [3.0, 5.0, 4.0]).interval == (-math.inf, math.inf)
    assert of(LENGTH, [3.0] * 20).interval == (-math.inf, math.inf), "its values have no limits"


def test_grades_that_are_all_equal_do_not_prove_that_others_are_impossible():
    seven = of(GRADE, [7.0] * 40)
    unseen = 1 - 0.025 ** (1 / 40)
    assert seven.value == 7 and seven.interval == pytest.approx((7 - 7 * unseen, 7 + 3 * unseen))
    wider = of(GRADE, [7.0] * 40, groups=[place // 4 for place in range(40)]).interval
    assert wider[0] < seven.interval[0] and wider[1] > seven.interval[1], (
        "ten beginnings show less than forty"
    )


def test_a_ratio_weighs_samples_by_their_counts_and_leaves_out_those_without():
    facts = of(SHARE, [3.0, 1.0, 0.0, 9.0], counts=[4, 1, 5, 0])
    assert facts.value == pytest.approx(0.4)


@pytest.mark.parametrize("kind", ["share", "rare", "recall", "grade", "length"])
def test_intervals_cover_although_samples_of_a_beginning_resemble_each_other(kind):
    random, beginnings, samples, tries = np.random.default_rng(1), 40, 5, 120
    groups = np.repeat(np.arange(beginnings), samples)
    hits, naive = 0, 0
    for _ in range(tries):
        level = random.normal(size=beginnings)[groups]  # some beginnings are easier
        own = random.normal(size=len(groups))
        counts = np.ones(len(groups))
        if kind in ("share", "rare"):
            true = 0.5 if kind == "share" else 0.03
            amounts = (level + 0.3 * own < math.sqrt(1.09) * stats.norm.ppf(true)).astype(float)
        elif kind == "recall":
            true, counts = 0.8, random.integers(0, 6, len(groups)).astype(float)
            chance = stats.norm.cdf(stats.norm.ppf(true) * math.sqrt(2) + level)
            amounts = random.binomial(counts.astype(int), chance).astype(float)
        elif kind == "grade":
            true, amounts = 5.0, 5 + level + 0.3 * own
        else:
            true, amounts = math.exp(0.5 * 0.34), np.exp(0.5 * level + 0.3 * own)
        measure = {"grade": GRADE, "length": LENGTH}.get(kind, SHARE)
        low, high = of(measure, amounts, groups, counts).interval
        hits += low <= true <= high
        low, high = of(measure, amounts, None, counts).interval
        naive += low <= true <= high
    assert hits / tries > 0.89, "at 95 % it is below that once in 300 times"
    assert naive / tries < 0.85 * hits / tries, "resampling samples is fooled"


def test_linearised_values_have_the_mean_and_the_spread_of_a_difference():
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(30), 3)
    arm, baseline = (
        Values(random.random(90) * (counts := random.integers(0, 4, 90)), counts) for _ in range(2)
    )
    terms = linearised(arm, baseline, groups)
    difference = sum(arm.amounts) / sum(arm.counts) - sum(baseline.amounts) / sum(baseline.counts)
    assert terms.mean() == pytest.approx(difference) and len(terms) == 30
    left_out = []
    for group in range(30):
        kept = groups != group
        left_out.append(
            np.asarray(arm.amounts)[kept].sum() / np.asarray(arm.counts)[kept].sum()
            - np.asarray(baseline.amounts)[kept].sum() / np.asarray(baseline.counts)[kept].sum()
        )
    jackknife = 30 * difference - 29 * np.array(left_out)
    assert terms.std() == pytest.approx(jackknife.std(), rel=0.05)
    assert linearised(arm, Values([0.0] * 90, [0] * 90), groups).size == 0
