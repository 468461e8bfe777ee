"""Online control of false discoveries: the rule against published examples, another package, and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from online_fdr.p_values.investing.lord.plus_plus import LordPlusPlus

from minllm.verdict.discoveries import ALPHA, FIRST_WEALTH, gamma, level

# the example of the R package onlineFDR (Robertson and others, 2019), from its reference pages
P_VALUES = [
    *(2.90e-08, 0.06743, 0.01514, 0.08174, 0.00171, 3.60e-05, 0.79149, 0.27201, 0.28295, 7.59e-08),
    *(0.69274, 0.30443, 0.00136, 0.72342, 0.54757),
]
OF_LORD = [  # LORD(sample.df, random=FALSE)
    *(0.0002675839, 0.0024664457, 0.0005732818, 0.0004872805, 0.0004059066, 0.0003447286, 0.0029745013),
    *(0.0008450114, 0.0007305648, 0.0006243143, 0.0032185913, 0.0010617227, 0.0009256825, 0.0008019657),
    0.0007059610,
]
OF_LORD_STAR = [  # LORDstar(sample.df2): each test ends when the next one has begun
    *(2.675839e-04, 5.819103e-05, 2.457817e-03, 5.649373e-04, 4.810068e-04, 4.011918e-04, 3.410964e-04),
    *(2.971630e-03, 8.426900e-04, 7.286513e-04, 6.227110e-04, 3.217229e-03, 1.060551e-03, 9.246646e-04),
    8.010731e-04,
]


def of_javanmard_and_montanari(j: int) -> float:
    """The default of that package: equation 31 of their paper of 2018, normalised."""
    return 0.07720838 * math.log(max(j, 2)) / (j * math.exp(math.sqrt(math.log(j))))


def levels_of(p_values, delay: int = 0, **rule) -> tuple[list[float], list[int]]:
    """Return the level of each test, and which are discoveries, if each ends `delay` starts after its own."""
    levels, found = [], []
    for number, p_value in enumerate(p_values, 1):
        known = [at + delay for at in found if at + delay < number]
        levels.append(level(number, known, **rule))
        if p_value <= levels[-1]:
            found.append(number)
    return levels, found


@pytest.mark.parametrize(("delay", "published"), [(0, OF_LORD), (1, OF_LORD_STAR)])
def test_the_levels_are_those_of_the_published_example(delay, published):
    rule = {"alpha": 0.05, "wealth": 0.005, "share": of_javanmard_and_montanari}
    levels, found = levels_of(P_VALUES, delay, **rule)
    assert levels == pytest.approx(published, rel=2e-6) and found == [1, 6, 10]


def test_the_levels_are_those_of_another_package():
    draw = np.random.default_rng(0)
    p_values = np.where(draw.random(200) < 0.2, draw.random(200) * 1e-4, draw.random(200))
    other = LordPlusPlus(ALPHA, FIRST_WEALTH)
    other.seq.calc_gamma = gamma
    rejected = [other.test_one_detail(float(p_value)) for p_value in p_values]
    levels, found = levels_of(p_values)
    assert levels == pytest.approx([one.test_level for one in rejected], rel=1e-9)
    assert found == [one.index for one in rejected if one.rejected] and len(found) > 20


def test_the_sequence_decreases_and_sums_to_one():
    terms = [gamma(j) for j in range(1, 5001)]
    assert sorted(terms, reverse=True) == terms
    tail = 5000.5**-0.6 / 0.6 * gamma(1)  # the integral of what is left out
    assert sum(terms) + tail == pytest.approx(1, abs=1e-6)


def test_what_all_ideas_spend_is_never_more_than_alpha_for_each_discovery():
    """The inequality that the proof of the control rests on."""
    draw = np.random.default_rng(1)
    for _ in range(20):
        levels, found = levels_of(draw.random(60) ** 3)
        assert sum(levels) <= ALPHA * max(1, len(found)) + 1e-12


@pytest.mark.parametrize(("number", "known"), [(0, []), (3, [3]), (3, [0]), (2, [5])])
def test_a_discovery_that_is_not_earlier_is_refused(number, known):
    with pytest.raises(ValueError, match="can't precede"):
        level(number, known)


@pytest.mark.parametrize("real", [0.0, 0.2])
def test_few_discoveries_are_false(real):
    """A hundred ideas, of which none or a fifth are real, tested over and over again: the promise, and its control."""
    rate, alone = false_share(real, lambda p, number, known: p <= level(number, known))
    assert rate <= 0.05 + 0.03
    unguarded, _ = false_share(real, lambda p, number, known: p <= ALPHA)
    assert unguarded > 0.15, "without the rule the promise doesn't hold, so this test can fail"
    assert not real or alone > 0.3


def false_share(real: float, is_found: Callable[[float, int, list[int]], bool]) -> tuple[float, float]:
    """Return the mean share of discoveries that are false, and of real ideas that are discovered."""
    draw = np.random.default_rng(2)
    shares, powers = [], []
    for _ in range(60):
        is_real = draw.random(100) < real
        p_values = np.where(is_real, draw.random(100) * 1e-3, draw.random(100))
        found: list[int] = []
        for number, p_value in enumerate(p_values, 1):
            if is_found(p_value, number, found):
                found.append(number)
        right = sum(is_real[number - 1] for number in found)
        shares.append((len(found) - right) / max(1, len(found)))
        powers.append(right / max(1, is_real.sum()))
    return float(np.mean(shares)), float(np.mean(powers))
