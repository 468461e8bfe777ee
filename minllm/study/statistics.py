"""Statistical tests on paired runs, with one of four verdicts: better, equivalent, worse, inconclusive.

A pair is two runs with the same seed, one of the arm and one of the baseline. Noise that the seed causes in both
cancels in their difference, which is why a few pairs can show what many unpaired runs can't.
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
EXACT_PAIRS = 20  # up to here all sign flips are enumerated, at most a million; beyond, they are sampled
DRAWS = 20_000
POWER = 0.8
MOST_SEEDS = 1_000
NOISE = 1e-9  # relative to the values, anything smaller is rounding error


@dataclass(frozen=True)
class Verdict:
    """What the seeds so far say about one arm and the baseline; p-values have Holm's correction over the contests."""

    word: Word
    pairs: int
    difference: float  # mean of (arm − baseline), in val_bpb; negative if the arm is better
    interval: tuple[float, float]  # of the difference, from Student's t at `confidence`
    confidence: float  # 0.95 with one look
    margin: float  # in val_bpb: smaller differences, either way, don't matter
    p_t: float  # for no difference, from the paired t test
    p_sign_flip: float  # for no difference, from the permutation test
    p_equivalence: float  # for a difference of at least the margin, from two one-sided t tests
    seeds_to_settle: (
        int | None
    )  # in total; None: more than 1,000, or fewer than two pairs to estimate it from
    why: str  # the explanation, in a sentence or two
    settling: str = ""  # if inconclusive: how many pairs would settle it, as a sentence


def verdicts(
    differences: Sequence[Sequence[float]], *, margin: float, alpha: float = 0.05, looks: int = 1
) -> list[Verdict]:
    """Judge each contest by its differences between an arm and a baseline.

    An arm is better or worse if both the t test and the sign-flip test reject the hypothesis of no difference. The
    first assumes that the differences are normal, the second only that they are symmetric. An arm is equivalent if two
    one-sided t tests reject a difference as large as the margin, even if a smaller difference is significant.

    The probability of any false claim of a difference stays below `alpha` over all contests (Holm) and all looks
    (Bonferroni) together; so does that of any false claim of equivalence.

    Args:
        differences: for each contest, arm − baseline of every pair, in val_bpb. The number of pairs may vary.
        margin: the largest difference that doesn't matter, in val_bpb, set before the first look.
        alpha: the probability of a false claim.
        looks: how many times in total the study is judged while seeds are added. More looks need stricter tests.

    Raises:
        ValueError: a difference isn't finite, or another argument is out of range.
    """
    if not (0 < margin < math.inf and 0 < alpha < 1 and looks >= 1):
        raise ValueError(f"margin={margin}, alpha={alpha} and looks={looks}: one of them is out of range")
    if not all(math.isfinite(difference) for contest in differences for difference in contest):
        raise ValueError("all differences must be finite; leave out the pairs that aren't")
    rule = _Rule(margin, alpha / looks, strictest=alpha / looks / max(1, len(differences)))
    samples = [_sample(contest, rule) for contest in differences]
    families = (_t_test, _sign_flip_test, _equivalence_test)
    p_values = zip(*(_holm([test(sample, rule) for sample in samples]) for test in families))
    return [_judge(sample, rule, *ps) for sample, ps in zip(samples, p_values)]


def least_pairs(alpha: float, looks: int, contests: int) -> int:
    """Return the fewest pairs with which the sign-flip test, whose smallest p is 2/2^n, can decide any contest."""
    return next(n for n in itertools.count(LEAST_PAIRS) if 2 / 2**n <= alpha / looks / max(1, contests))


def noise_floor(values: Sequence[float]) -> float | None:
    """Return the difference between two runs of the same arm that seeds alone stay below in 95 % of cases.

    It is t · s · √2, where s is the standard deviation of `values`, √2 accounts for the noise of both runs, and t is
    the 97.5 % quantile of Student's t with n − 1 degrees of freedom. None for fewer than two values.

    Args:
        values: val_bpb of one arm at several seeds; the floor has the same unit.
    """
    if len(values) < 2:
        return None
    return float(stdtrit(len(values) - 1, 0.975)) * spread(values)[1] * math.sqrt(2)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation (with n − 1; 0.0 for one value). ValueError if there are no values."""
    if len(values) == 0:
        raise ValueError("the mean of no values is undefined")
    mean = math.fsum(values) / len(values)  # exact, so that the order of the seeds doesn't matter
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))


@dataclass(frozen=True)
class _Rule:
    margin: float
    level: float  # alpha at each look
    strictest: float  # Bonferroni's level, where Holm's can't be known

    @property
    def least(self) -> int:
        return least_pairs(self.strictest, 1, 1)


@dataclass(frozen=True)
class _Sample:
    """The differences of one contest, with their summary statistics."""

    differences: Sequence[float]
    pairs: int
    mean: float
    sd: float


def _sample(differences: Sequence[float], rule: _Rule) -> _Sample:
    """Return a sample with rounding errors set to zero, and a standard deviation that can be divided by."""
    noise = NOISE * max(rule.margin, *map(abs, differences), 0.0)
    differences = [0.0 if abs(difference) <= noise else difference for difference in differences]
    mean, sd = spread(differences) if differences else (0.0, 0.0)
    return _Sample(differences, len(differences), mean, max(sd, noise))


def _t_test(sample: _Sample, rule: _Rule) -> float:
    return min(1.0, 2 * _tail(abs(sample.mean), sample))


def _equivalence_test(sample: _Sample, rule: _Rule) -> float:
    """Return the larger p-value of the two one-sided tests, which is that of the nearer margin."""
    return _tail(rule.margin - abs(sample.mean), sample)


def _tail(distance: float, sample: _Sample) -> float:
    """Return the probability that chance alone takes the mean this far from the tested value."""
    if sample.pairs < 2:
        return 1.0
    return float(stdtr(sample.pairs - 1, -distance / sample.sd * math.sqrt(sample.pairs)))


def _sign_flip_test(sample: _Sample, rule: _Rule) -> float:
    """Return the fraction of sign flips whose sum of differences is at least as far from 0."""
    sizes = np.sort(np.abs(sample.differences))
    observed = abs(math.fsum(sample.differences)) - NOISE * sizes.sum()  # a tie may differ by an ulp
    if sample.pairs > EXACT_PAIRS:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(DRAWS, sample.pairs))
        return float((1 + np.count_nonzero(abs(signs @ sizes) >= observed)) / (1 + DRAWS))
    sums = sizes[:1]  # its sign stays fixed, because flipping all signs doesn't change the distance from 0
    for size in sizes[1:]:
        sums = np.concatenate([sums + size, sums - size])
    return float((abs(sums) >= observed).mean()) if sample.pairs else 1.0


def _holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: the smallest times n, the next times n − 1, and so on, never decreasing."""
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
    """Return how many pairs give a power of 0.8, assuming that the mean and the standard deviation stay the same."""
    if sample.pairs < 2:
        return None
    powers = (_power_of_difference, _power_of_equivalence)  # neither decreases as pairs are added
    choices = range(max(rule.least, sample.pairs + 1), MOST_SEEDS + 1)
    first = bisect_left(choices, POWER, key=lambda pairs: max(power(sample, rule, pairs) for power in powers))
    return choices[first] if first < len(choices) else None


def _settling(sample: _Sample, seeds: int | None) -> str:
    if sample.pairs < 2:
        return "How many pairs would settle it can't be estimated from fewer than two."
    if seeds is None:
        return f"It would take more than {MOST_SEEDS:,} pairs to settle it, if the mean and the spread stay the same."
    return f"About {seeds:,} pairs in total would settle it, if the mean and the spread stay the same."


def _power_of_difference(sample: _Sample, rule: _Rule, pairs: int) -> float:
    """Return the probability that both tests detect the difference.

    The sign-flip test needs about one pair more than the t test. With the fewest pairs it needs all differences to
    have the same sign, whose probability is known.
    """
    power = _power(abs(sample.mean), sample, pairs - 1, rule.strictest / 2)
    same_sign = float(ndtr(abs(sample.mean) / sample.sd)) ** pairs
    return power if 4 / 2**pairs <= rule.strictest else min(power, same_sign)


def _power_of_equivalence(sample: _Sample, rule: _Rule, pairs: int) -> float:
    """Return a lower bound on the probability that both one-sided tests succeed: the sum of the two minus one."""
    near, far = rule.margin - abs(sample.mean), rule.margin + abs(sample.mean)
    return sum(_power(distance, sample, pairs, rule.strictest) for distance in (near, far)) - 1


def _power(distance: float, sample: _Sample, pairs: int, level: float) -> float:
    """Return the power of a one-sided t test whose true mean is this far from the tested value."""
    shift = min(max(distance / sample.sd * math.sqrt(pairs), 0.0), 30.0)  # outside, nctdtr may return nan
    return 1 - float(nctdtr(pairs - 1, shift, stdtrit(pairs - 1, 1 - level)))


def _found(sample: _Sample, rule: _Rule, p_sign_flip: float) -> str:
    """Return the sentence with the numbers."""
    if sample.pairs == 0:
        return "No pair of runs has finished."
    low, high = _interval(sample, rule)
    near, far = sorted((abs(low), abs(high)))
    ends = f"{-low:.4f} lower to {high:.4f} higher" if low < 0 < high else f"{near:.4f} to {far:.4f}"
    interval = f" ({100 * (1 - rule.level):.3g} % interval {ends})" if sample.pairs > 1 else ""
    direction = "lower" if sample.mean < 0 else "higher" if sample.mean > 0 else "apart"
    mean = f"{abs(sample.mean):.4f} bits per byte {direction}"
    test = "exact sign-flip p" if sample.pairs <= EXACT_PAIRS else f"sign-flip p (of {DRAWS:,} draws)"
    return f"{sample.pairs} pair{'s' * (sample.pairs > 1)}: {mean}{interval}, {test} {_p(p_sign_flip)}."


def _so(word: Word, differs: bool, sample: _Sample, rule: _Rule, p_equivalence: float) -> str:
    """Return the sentence with the conclusion; "" if the numbers are conclusive on their own."""
    if word == "equivalent":
        small = f"less than {rule.margin:.4f} either way (p {_p(p_equivalence)})"
        return f"The difference is {small}{': a real difference, but too small to matter' * differs}."
    if word != "inconclusive":
        return ""
    if sample.pairs >= rule.least:
        return f"Neither a difference nor equivalence within {rule.margin:.4f} (p {_p(p_equivalence)}) is established."
    corrected = " with this many contests and looks" * (rule.least > LEAST_PAIRS)
    return f"The sign-flip test needs at least {rule.least} pairs{corrected}."


def _p(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"= {p_value:.2g}"
