"""From the differences between paired runs to one of four words: better, equivalent, worse, inconclusive.

A pair is two runs with the same seed, one of the arm and one of the baseline. Chance that a seed brings to both
cancels in their difference, which is why a few pairs can say what many unpaired runs couldn't.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import nctdtr, ndtr, stdtr, stdtrit

Word = Literal["better", "equivalent", "worse", "inconclusive"]

LEAST_PAIRS = 6  # with fewer, the exact sign-flip test can't reach 0.05: its smallest two-sided p is 2/2^n
EXACT_PAIRS = 20  # up to here all the sign flips are tried, a million at most; beyond, some are drawn
DRAWS = 20_000
POWER = 0.8
MOST_SEEDS = 1_000
NOISE = 1e-9  # what is smaller beside the figures is rounding


@dataclass(frozen=True)
class Verdict:
    """What the seeds so far say of one arm beside the baseline. Every p-value is after Holm over the contests."""

    word: Word
    pairs: int
    difference: float  # mean of (arm − baseline), in val_bpb: below 0, the arm is better
    interval: tuple[float, float]  # of the difference, from Student's t at `confidence`
    confidence: float  # 0.95 with one look
    margin: float  # in val_bpb: differences of less than that, either way, don't matter
    p_t: float  # of no difference, by the paired t test
    p_sign_flip: float  # of no difference, by the permutation test
    p_equivalence: float  # of a difference of the margin or more, by two one-sided t tests
    seeds_to_settle: int | None  # in all; None: more than 1,000, or unknowable from fewer than two pairs
    why: str  # a sentence or two for a person
    settling: str = ""  # where it is inconclusive: how many pairs would settle it, as a sentence


def verdicts(
    differences: Sequence[Sequence[float]], *, margin: float, alpha: float = 0.05, looks: int = 1
) -> list[Verdict]:
    """PruningLogger each contest by its differences between an arm and a baseline.

    An arm is better or worse where both the t test and the sign-flip test exclude that there is no difference: the
    first trusts the differences to be normal, the second only their symmetry. It is equivalent where two one-sided
    t tests exclude a difference as large as the margin, and stays so where a smaller difference is certain.

    False claims of a difference stay below `alpha` over all the contests (Holm) and all the looks (Bonferroni)
    together; so do false claims of equivalence.

    Args:
        differences: for each contest, arm − baseline of every pair, in val_bpb. Each may have its own number of pairs.
        margin: the largest difference that doesn't matter, in val_bpb, set before the first look.
        alpha: the probability of a false claim, if nothing is different.
        looks: how often the study is judged in all while seeds are added. Who looks more often must be surer each time.

    Raises:
        ValueError: a difference isn't finite, or another argument is out of its range.
    """
    if not (0 < margin < math.inf and 0 < alpha < 1 and looks >= 1):
        raise ValueError(f"margin={margin}, alpha={alpha} and looks={looks}: one of them is out of range")
    if not all(math.isfinite(difference) for contest in differences for difference in contest):
        raise ValueError("a difference that isn't a finite number can't be judged; leave its pair out")
    rule = _Rule(margin, alpha / looks, strictest=alpha / looks / max(1, len(differences)))
    samples = [_sample(contest, rule) for contest in differences]
    families = (_t_test, _sign_flip_test, _equivalence_test)
    p_values = zip(*(_holm([test(sample, rule) for sample in samples]) for test in families))
    return [_judge(sample, rule, *ps) for sample, ps in zip(samples, p_values)]


def least_pairs(alpha: float, looks: int, contests: int) -> int:
    """Return the fewest pairs with which the sign-flip test can decide any of the contests: its smallest p is 2/2^n."""
    return next(n for n in itertools.count(LEAST_PAIRS) if 2 / 2**n <= alpha / looks / max(1, contests))


def noise_floor(values: Sequence[float]) -> float | None:
    """Return how far apart two runs of the same arm may be by their seeds alone, in 95 of 100 cases.

    It is t · s · √2, with s the standard deviation of `values`, √2 because a difference has the noise of both its
    runs, and t the 97.5 % quantile of Student's t with n − 1 degrees of freedom. None for fewer than two values.

    Args:
        values: val_bpb of one arm at several seeds. The floor has their unit.
    """
    if len(values) < 2:
        return None
    return float(stdtrit(len(values) - 1, 0.975)) * spread(values)[1] * math.sqrt(2)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation (over n − 1; 0.0 for one value). No value is a ValueError."""
    if len(values) == 0:
        raise ValueError("no values, so no mean")
    mean = math.fsum(values) / len(values)  # fsum: the order of the seeds changes not even the last bit
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))


@dataclass(frozen=True)
class _Rule:
    margin: float
    level: float  # alpha at each look
    strictest: float  # what a contest must meet if no other does: Bonferroni's, for what can't know Holm's

    @property
    def least(self) -> int:
        return least_pairs(self.strictest, 1, 1)


@dataclass(frozen=True)
class _Sample:
    """The differences of one contest, and what sums them up."""

    differences: Sequence[float]
    pairs: int
    mean: float
    sd: float


def _sample(differences: Sequence[float], rule: _Rule) -> _Sample:
    """Return a sample whose zeros are zeros, and whose spread isn't, so that nothing below divides by it."""
    noise = NOISE * max(rule.margin, *map(abs, differences), 0.0)
    differences = [0.0 if abs(difference) <= noise else difference for difference in differences]
    mean, sd = spread(differences) if differences else (0.0, 0.0)
    return _Sample(differences, len(differences), mean, max(sd, noise))


def _t_test(sample: _Sample, rule: _Rule) -> float:
    return min(1.0, 2 * _tail(abs(sample.mean), sample))


def _equivalence_test(sample: _Sample, rule: _Rule) -> float:
    """Return the larger p-value of the two one-sided tests: that at the nearer end of the margins."""
    return _tail(rule.margin - abs(sample.mean), sample)


def _tail(distance: float, sample: _Sample) -> float:
    """Return how probably chance alone takes the mean this far from the value it's tested against."""
    if sample.pairs < 2:
        return 1.0
    return float(stdtr(sample.pairs - 1, -distance / sample.sd * math.sqrt(sample.pairs)))


def _sign_flip_test(sample: _Sample, rule: _Rule) -> float:
    """Return the share of all ways to flip the differences' signs that take their sum as far from 0, or farther."""
    sizes = np.sort(np.abs(sample.differences))
    observed = abs(math.fsum(sample.differences)) - NOISE * sizes.sum()  # a tie may be an ulp away
    if sample.pairs > EXACT_PAIRS:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(DRAWS, sample.pairs))
        return float((1 + np.count_nonzero(abs(signs @ sizes) >= observed)) / (1 + DRAWS))
    sums = sizes[:1]  # whose sign stays: flipping all of them changes no distance from 0
    for size in sizes[1:]:
        sums = np.concatenate([sums + size, sums - size])
    return float((abs(sums) >= observed).mean()) if sample.pairs else 1.0


def _holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's p-values: the smallest times their number, the next times one less, and so on, never falling."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def _judge(sample: _Sample, rule: _Rule, p_t: float, p_sign_flip: float, p_equivalence: float) -> Verdict:
    enough = sample.pairs >= LEAST_PAIRS
    differs = enough and max(p_t, p_sign_flip) <= rule.level
    word: Word = "inconclusive"
    if enough and p_equivalence <= rule.level:
        word = "equivalent"
    elif differs:
        word = "better" if sample.mean < 0 else "worse"
    p_values = (p_t, p_sign_flip, p_equivalence)
    seeds = _seeds_to_settle(sample, rule) if word == "inconclusive" else sample.pairs
    why = f"{_found(sample, rule, p_sign_flip)} {_so(word, differs, sample, rule, p_equivalence)}".strip()
    interval, confidence = _interval(sample, rule), 1 - rule.level
    settling = _settling(sample, seeds) if word == "inconclusive" else ""
    return Verdict(
        word, sample.pairs, sample.mean, interval, confidence, rule.margin, *p_values, seeds, why, settling
    )


def _interval(sample: _Sample, rule: _Rule) -> tuple[float, float]:
    if sample.pairs < 2:
        return -math.inf, math.inf
    half = float(stdtrit(sample.pairs - 1, 1 - rule.level / 2)) * sample.sd / math.sqrt(sample.pairs)
    return sample.mean - half, sample.mean + half


def _seeds_to_settle(sample: _Sample, rule: _Rule) -> int | None:
    """Return how many pairs settle it in four of five studies, if the mean and the spread are what they seem."""
    if sample.pairs < 2:
        return None
    powers = (_power_of_difference, _power_of_equivalence)  # neither falls as pairs are added
    choices = range(max(rule.least, sample.pairs + 1), MOST_SEEDS + 1)
    first = bisect_left(choices, POWER, key=lambda pairs: max(power(sample, rule, pairs) for power in powers))
    return choices[first] if first < len(choices) else None


def _settling(sample: _Sample, seeds: int | None) -> str:
    if sample.pairs < 2:
        return "How many pairs would settle it can't be estimated from fewer than two."
    if seeds is None:
        return (
            f"More than {MOST_SEEDS:,} pairs would be needed to settle it, by these pairs' mean and spread."
        )
    return f"About {seeds:,} pairs in all would settle it, if the mean and the spread stay as they are."


def _power_of_difference(sample: _Sample, rule: _Rule, pairs: int) -> float:
    """Return how probably both tests see the difference.

    What the sign-flip test asks beyond the t test is worth about one pair. With the fewest pairs it is worth more,
    and known: if only one of all the flips may count against it, the differences must all have the same sign.
    """
    power = _power(abs(sample.mean), sample, pairs - 1, rule.strictest / 2)
    same_sign = float(ndtr(abs(sample.mean) / sample.sd)) ** pairs
    return power if 4 / 2**pairs <= rule.strictest else min(power, same_sign)


def _power_of_equivalence(sample: _Sample, rule: _Rule, pairs: int) -> float:
    """Return how probably both one-sided tests succeed: at least the two probabilities' sum less one."""
    near, far = rule.margin - abs(sample.mean), rule.margin + abs(sample.mean)
    return sum(_power(distance, sample, pairs, rule.strictest) for distance in (near, far)) - 1


def _power(distance: float, sample: _Sample, pairs: int, level: float) -> float:
    """Return how probably a one-sided t test sees that the mean lies this far from what it's tested against."""
    shift = min(max(distance / sample.sd * math.sqrt(pairs), 0.0), 30.0)  # outside, nctdtr may return nan
    return 1 - float(nctdtr(pairs - 1, shift, stdtrit(pairs - 1, 1 - level)))


def _found(sample: _Sample, rule: _Rule, p_sign_flip: float) -> str:
    """Return the sentence with the figures."""
    if sample.pairs == 0:
        return "No pair of runs has finished."
    low, high = _interval(sample, rule)
    near, far = sorted((abs(low), abs(high)))
    ends = f"{-low:.4f} lower to {high:.4f} higher" if low < 0 < high else f"{near:.4f} to {far:.4f}"
    interval = f" ({100 * (1 - rule.level):.3g} % interval {ends})" if sample.pairs > 1 else ""
    direction = "lower" if sample.mean < 0 else "higher" if sample.mean > 0 else "apart"
    mean = f"{abs(sample.mean):.4f} bits a byte {direction}"
    test = "exact sign-flip p" if sample.pairs <= EXACT_PAIRS else f"sign-flip p (of {DRAWS:,} draws)"
    return f"{sample.pairs} pair{'s' * (sample.pairs > 1)}: {mean}{interval}, {test} {_p(p_sign_flip)}."


def _so(word: Word, differs: bool, sample: _Sample, rule: _Rule, p_equivalence: float) -> str:
    """Return the sentence with what follows from them; "" where they say it themselves."""
    small = f"less than {rule.margin:.4f} either way (p {_p(p_equivalence)})"
    if word == "equivalent":
        return f"It is {small}{': real, and too small to matter by the margin' * differs}."
    if word != "inconclusive":
        return ""
    if sample.pairs >= rule.least:
        return f"Neither a difference nor its absence, {small}, is certain."
    so_many = " with so many contests and looks" * (rule.least > LEAST_PAIRS)
    return f"Fewer than {rule.least} pairs{so_many} can't say more by the sign-flip test."


def _p(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"= {p_value:.2g}"
