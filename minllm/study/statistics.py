"""Statistical tests on paired runs, with one of four verdicts: better, equivalent, worse, inconclusive.

A pair is two runs with the same seed, one of the arm and one of the baseline. Noise that the seed causes in both
cancels in their difference, which is why a few pairs can show what many unpaired runs can't.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from minllm.estimates import holm
from minllm.study.boundaries import (
    LEVELS,
    Sides,
    SignFlips,
    boundary,
    sequential_p,
    spent,
)
from minllm.study.explaining import Numbers, explained, settling
from minllm.study.futility import FUTILE, NOISE, chance_to_settle, chance_to_settle_ranks
from minllm.study.power import Guess, pairs_to_settle
from minllm.study.sample import Sample, sample_of, spread
from minllm.study.verdict import Look, Verdict, Word

ALL_WORDS: tuple[Word, ...] = ("better", "equivalent", "worse")
SIDES: dict[Word | None, int] = {"worse": 1, "better": -1}
"""The sign of arm − baseline, for the words that say which of the two is better."""
FARTHEST = 1e12  # bits per byte: farther apart than any values that didn't diverge

LEAST_PAIRS = 6  # with fewer, the exact sign-flip test can't reach 0.05: its smallest two-sided p is 2/2^n


def verdicts(
    differences: Sequence[Sequence[float]],
    *,
    margin: float,
    alpha: float = 0.05,
    looks: Sequence[int] = (),
    provable: Sequence[Collection[Word]] | None = None,
    unit: str = "bits per byte",
) -> list[Verdict]:
    """Judge each contest by its differences between an arm and a baseline, in the order in which they were trained.

    An arm is better or worse if both the t test and the sign-flip test reject the hypothesis of no difference. The
    first assumes that the differences are normal (and corrects for skewness), the second only that they are symmetric.
    An arm is equivalent if two one-sided t tests reject a difference as large as the margin, even if a smaller
    difference is significant.

    A difference is infinite if the arm diverged (inf) or the baseline did (-inf), and NaN if both did, which is a tie.
    The sign-flip test then compares ranks, in which divergence is the worst outcome, and decides alone. Equivalence
    isn't claimed then, nor that the one that diverged more often is better.

    The probability of any false claim of a difference stays below `alpha` over all contests (Holm) and all looks
    (alpha spending) together; so does that of any false claim of equivalence. A contest is settled at the first look
    that allows a claim; later pairs don't change it. So is one whose values differ in a direction that proves nothing,
    because one of them is an upper bound.

    Args:
        differences: for each contest, arm − baseline of every pair, in val_bpb. The number of pairs may vary.
        margin: the largest difference that doesn't matter, in val_bpb, set before the first look.
        alpha: the probability of a false claim.
        looks: the numbers of pairs at which results are tested while pairs are added, including the looks to come. All
            looks for which there are enough pairs are repeated here. Empty: a single look at all pairs.
        provable: for each contest, the words that its values can prove; see `minllm.study.bounds`. None: all.
        unit: of the differences and the margin, for sentences.

    Raises:
        ValueError: an argument is out of range.
    """
    if not (0 < margin < math.inf and 0 < alpha < 1 and _are_increasing(looks)):
        raise ValueError(f"margin={margin}, alpha={alpha} and looks={looks}: one of them is out of range")
    rule = _Rule(margin, alpha, tuple(looks), max(1, len(differences)), unit)
    trials = [
        _Trial(contest, rule, provable_words)
        for contest, provable_words in zip(differences, provable or [ALL_WORDS] * len(differences))
    ]
    for look in range(max((len(trial.reached) for trial in trials), default=0)):
        for trial in trials:
            trial.test(look)
        of_difference = holm([trial.p_difference for trial in trials])
        of_equivalence = holm([trial.p_equivalence for trial in trials])
        for trial, *p_values in zip(trials, of_difference, of_equivalence):
            trial.judge(look, *p_values)
    unsettled = sum(not trial.is_settled for trial in trials)
    return [trial.verdict(alpha / max(1, unsettled)) for trial in trials]


def least_pairs(alpha: float, looks: Sequence[int], contests: int) -> int:
    """Return the fewest pairs with which the sign-flip test, whose smallest p is 2/2^n, can decide any contest.

    Args:
        looks: the planned numbers of pairs. If none of them suffices, the result is larger than the last; if there are
            none, it's the number for a single look.
    """
    level = alpha / max(1, contests)
    if not looks:
        return next(n for n in itertools.count(LEAST_PAIRS) if 2 / 2**n <= level)
    planned = itertools.chain(looks, itertools.count(looks[-1] + 1))
    return next(n for n in planned if n >= LEAST_PAIRS and 2 / 2**n <= spent(level, looks, n))


def noise_floor(values: Sequence[float]) -> float | None:
    """Return the difference between two runs of the same arm that seeds alone stay below in 95 % of cases.

    It is t · s · √2, where s is the standard deviation of `values`, √2 accounts for the noise of both runs, and t is
    the 97.5 % quantile of Student's t with n − 1 degrees of freedom. None for fewer than two values.

    Args:
        values: val_bpb of one arm at several seeds; the floor has the same unit.
    """
    if len(values) < 2:
        return None
    if len(set(values)) == 1:
        return 0.0
    return float(stdtrit(len(values) - 1, 0.975)) * spread(values)[1] * math.sqrt(2)


@dataclass(frozen=True)
class _Rule:
    margin: float
    alpha: float
    looks: tuple[int, ...]
    contests: int
    unit: str

    @property
    def levels(self) -> list[float]:
        """The error rates at which sequential tests are tried; Holm's own are among them."""
        return sorted({*LEVELS, *(self.alpha / rank for rank in range(1, self.contests + 1))})


@dataclass
class _Trial:
    """A contest while its looks are repeated one after the other."""

    differences: Sequence[float]
    rule: _Rule
    provable: Collection[Word]
    word: Word = "inconclusive"
    unproved: Word | None = None
    looks: list[Look] = field(default_factory=list)
    p_t: float = 1.0
    p_sign_flip: float = 1.0
    p_difference: float = 1.0
    p_equivalence: float = 1.0
    adjusted: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        finite = [abs(difference) for difference in self.differences if math.isfinite(difference)]
        self.noise = NOISE * max(self.rule.margin, *finite, 0.0)
        self.differences = [
            0.0 if abs(difference) <= self.noise else difference for difference in self.differences
        ]
        self.planned = self.rule.looks or ((len(self.differences),) if self.differences else ())
        self.reached = [pairs for pairs in self.planned if pairs <= len(self.differences)]
        self.samples = [sample_of(self.differences[:pairs], self.noise) for pairs in self.reached]
        self.with_ties = [0.0 if math.isnan(difference) else difference for difference in self.differences]
        self.flips = SignFlips(self.with_ties, self.reached, self.planned) if self.reached else None
        self.of_t = [sample.p_t for sample in self.samples]
        self.of_equivalence = [sample.p_equivalence(self.rule.margin) for sample in self.samples]

    @property
    def is_settled(self) -> bool:
        """Whether it has an outcome, or a difference that proves nothing."""
        return self.word != "inconclusive" or self.unproved in SIDES

    def is_open(self, look: int) -> bool:
        return not self.is_settled and look < len(self.reached)

    def test(self, look: int) -> None:
        """Compute the sequential p-values up to a look."""
        if not self.is_open(look) or self.flips is None:
            return
        is_last, finite = look == len(self.reached) - 1, self.samples[look].is_finite
        self.p_equivalence = self._p_of_t(self.of_equivalence, look, 1)
        limits = boundary(self.planned, self.rule.alpha, 2)
        is_close = not finite or any(p <= limit for p, limit in zip(self.of_t[: look + 1], limits))
        self.p_difference = self._p_difference(look) if is_close or is_last else 1.0  # else it's above alpha

    def _p_of_t(self, p_values: Sequence[float], look: int, sides: Sides) -> float:
        """Return the sequential p-value of a t test with these p-values at each look; 1.0 where a run diverged."""
        if not self.samples[look].is_finite:
            return 1.0
        if len(self.planned) == 1:
            return p_values[look]

        def rejects(level: float) -> bool:
            limits = boundary(self.planned, level, sides)
            return any(p <= limit for p, limit in zip(p_values[: look + 1], limits))

        return sequential_p(rejects, self.rule.levels, self.rule.alpha)

    def _p_difference(self, look: int) -> float:
        """Return the smallest error rate at which both tests have rejected by now, the t test if it can be used."""
        if len(self.planned) == 1:
            return max(self.of_t[look] if self.samples[look].is_finite else 0.0, self.flips.p_value(look))

        def rejects(level: float) -> bool:
            limits = boundary(self.planned, level, 2)
            by_t, by_signs = False, False
            for at, signs in enumerate(self.flips.rejections(look, level)):
                if signs and not self.samples[at].is_finite:
                    return True
                by_t, by_signs = by_t or self.of_t[at] <= limits[at], by_signs or signs
                if by_t and by_signs:
                    return True
            return False

        return sequential_p(rejects, self.rule.levels, self.rule.alpha)

    def judge(self, look: int, p_difference: float, p_equivalence: float) -> None:
        """Settle the contest if the corrected p-values allow it, and write down the look."""
        if not self.is_open(look):
            return
        self.adjusted = (p_difference, p_equivalence)
        sample, alpha = self.samples[look], self.rule.alpha * (1 + 1e-9)
        is_equivalent, differs = (
            sample.pairs >= LEAST_PAIRS and p <= alpha for p in (p_equivalence, p_difference)
        )
        self.unproved = None
        if is_equivalent and "equivalent" in self.provable:
            self.word = "equivalent"
        elif differs and (direction := self._direction(look)) != "inconclusive":
            proved = direction in self.provable or self._is_proved_by_divergence(SIDES[direction], look)
            self.word, self.unproved = (direction, None) if proved else ("inconclusive", direction)
        elif is_equivalent:
            self.unproved = "equivalent"
        self.looks.append(self._look(look))
        if self.is_settled or look == len(self.reached) - 1:  # what the report shows
            self.p_t = self._p_of_t(self.of_t, look, 2)
            self.p_sign_flip = self.flips.sequential(look, self.rule.levels, self.rule.alpha)

    def _direction(self, look: int) -> Word:
        """Return which of the two is better; inconclusive if that one diverged more often."""
        sample = self.samples[look]
        side = sample.mean if sample.is_finite else self.flips.observed[look]
        arm, baseline = sample.diverged
        if (side < 0 and arm > baseline) or (side > 0 and baseline > arm):
            return "inconclusive"
        return "better" if side < 0 else "worse"

    def _is_proved_by_divergence(self, side: int, look: int) -> bool:
        """Whether runs diverged so often that the arm is on this side whatever the values of the others are."""
        if self.samples[look].is_finite:
            return False
        flips = SignFlips(self._against(side), self.reached, self.planned)
        rejected = flips.rejections(look, self.rule.alpha / self.rule.contests)
        return any(yes and side * seen > 0 for yes, seen in zip(rejected, flips.observed))

    def _against(self, side: int) -> list[float]:
        """Return the differences with the finite ones as far on the other side as they could be."""
        return [
            -side * FARTHEST if math.isfinite(difference) else 0.0 if math.isnan(difference) else difference
            for difference in self.differences
        ]

    def _look(self, look: int) -> Look:
        sample, alpha = self.samples[look], self.rule.alpha
        level = boundary(self.planned, alpha, 2)[look]
        ends = self._narrowed(sample.interval(level))
        p_values = (self.of_t[look], self.flips.p_value(look), self.of_equivalence[look])
        equivalence_level = boundary(self.planned, alpha, 1)[look]
        return Look(sample.pairs, sample.known_mean, ends, *p_values, level, equivalence_level, self.word)

    def _narrowed(self, ends: tuple[float, float]) -> tuple[float, float]:
        """Return the values that are in the intervals of all looks so far; the last interval if there are none."""
        if not self.looks or math.isinf(ends[0]):
            return ends
        low, high = (pick(both) for pick, both in zip((max, min), zip(self.looks[-1].interval, ends)))
        return (low, high) if low <= high else ends

    def verdict(self, level: float) -> Verdict:
        """Return the result after the last look.

        Args:
            level: the error rate that the contest may use at the looks to come.
        """
        last = self.looks[-1] if self.looks else None
        pairs = last.pairs if last else len(self.differences)
        sample = self.samples[len(self.looks) - 1] if last else sample_of(self.differences, self.noise)
        chance = None if self.is_settled else self._chance(level)
        futile = self.unproved in SIDES or (chance is not None and chance < FUTILE)
        seeds = pairs if self.word != "inconclusive" else self._seeds_to_settle(sample)
        p_difference, p_equivalence = self.adjusted
        numbers = Numbers(
            sample,
            last.interval if last else (-math.inf, math.inf),
            1 - self.rule.alpha,
            self.rule.margin,
            p_difference,
            p_equivalence,
            self.rule.looks,
            self._least(),
            LEAST_PAIRS,
            self.unproved,
            self.unproved in SIDES or (sample.is_finite and not any(self._claims(sample))),
            self.rule.unit,
        )
        return Verdict(
            word=self.word,
            pairs=pairs,
            difference=sample.known_mean,
            interval=numbers.interval,
            confidence=numbers.confidence,
            margin=numbers.margin,
            p_t=self.p_t,
            p_sign_flip=self.p_sign_flip,
            p_difference=p_difference,
            p_equivalence=p_equivalence,
            p_overall=self._p_overall(),
            seeds_to_settle=seeds,
            why=explained(self.word, numbers),
            settling="" if self.word != "inconclusive" else settling(numbers, seeds, futile),
            looks=tuple(self.looks),
            futile=futile,
            unproved=self.unproved,
            diverged=sample.diverged,
        )

    def _p_overall(self) -> float:
        """Return a p-value for no difference over all looks that were reached, settled or not.

        Half of the error rate is for the sequential test, and half for the last planned look alone: the sequential test
        decides early, but hardly ever at the small levels of late ideas.
        """
        if not self.reached:
            return 1.0
        last = len(self.reached) - 1
        was_tested = len(self.looks) == len(self.reached)
        p = self.p_difference if was_tested else self._p_difference(last)
        if len(self.planned) == 1:
            return p
        if len(self.reached) == len(self.planned):
            of_t = self.of_t[last] if self.samples[last].is_finite else 0.0
            p = min(p, max(of_t, self.flips.p_value(last)))
        return min(1.0, 2 * p)

    def _chance(self, level: float) -> float | None:
        """Return the chance that a look to come settles it; None before the first look and after the last."""
        later = self.planned[len(self.looks) :]
        if not self.looks or not later or self.looks[-1].pairs < 3:
            return None
        pairs, random = self.looks[-1].pairs, np.random.default_rng(0)
        seen = np.array(self.with_ties[:pairs])
        sides = [side for word, side in SIDES.items() if word in self.provable]
        if not (sample := self.samples[len(self.looks) - 1]).is_finite:
            arm, baseline = sample.diverged
            allowed = [side for side, leads in ((1, arm >= baseline), (-1, baseline >= arm)) if leads]
            wanted = [side for side in allowed if side in sides]
            chance = chance_to_settle_ranks(seen, later[-1], level, wanted, random)
            for side in set(allowed) - set(sides):
                against = np.array(self._against(side)[:pairs])
                chance += chance_to_settle_ranks(against, later[-1], level, [side], random)
            return min(1.0, chance)
        limits = [boundary(self.planned, level, sided)[len(self.looks) :] for sided in (2, 1)]
        claims = (sides, "equivalent" in self.provable)
        return float(chance_to_settle(seen, later, *limits, self.rule.margin, random, *claims))

    def _claims(self, sample: Sample) -> tuple[bool, bool]:
        """Whether the values could prove a difference in the direction of the mean, and equivalence."""
        word = "better" if sample.mean < 0 else "worse"
        return word in self.provable, "equivalent" in self.provable

    def _seeds_to_settle(self, sample: Sample) -> int | None:
        if not sample.is_finite or not any(self._claims(sample)):
            return None
        strictest = self.rule.alpha / self.rule.contests
        levels = [
            boundary(self.planned, strictest, sides)[-1] if self.planned else strictest for sides in (2, 1)
        ]
        return pairs_to_settle(
            Guess(
                sample.pairs,
                sample.mean,
                sample.sd,
                self.rule.margin,
                *levels,
                self._least(),
                *self._claims(sample),
            )
        )

    def _least(self) -> int:
        return least_pairs(self.rule.alpha, self.rule.looks, self.rule.contests)


def _are_increasing(looks: Sequence[int]) -> bool:
    return all(pairs >= 1 for pairs in looks) and sorted(set(looks)) == list(looks)
