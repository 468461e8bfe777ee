"""One arm's grades against another's: a verdict for each measure, with the same four words as for the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from minllm.estimates import LEVEL
from minllm.grading.grades import Measure
from minllm.grading.intervals import RANGES, unseen_share
from minllm.page import units
from minllm.study.statistics import LEAST_PAIRS, verdicts
from minllm.study.verdict import Verdict, Word

Basis = Literal["seeds", "beginnings"]


@dataclass(frozen=True)
class Differences:
    """The differences of a measure between an arm and a baseline, before they are tested.

    values: arm − baseline, of each pair of runs or of each group of samples
    margin: the difference that doesn't matter, in the measure's unit
    groups: the number of groups of samples that have a value, of the one of the two that has fewer
    room: the lowest and the highest difference that the 95 % intervals of the two allow, where some groups have no
        value; tests of groups don't know how uncertain a run is that has few. None where all have one
    """

    arm: str
    baseline: str
    measure: Measure
    values: Sequence[float]
    margin: float
    groups: int
    room: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    def allows(self, word: Word) -> bool:
        """Whether enough samples have a value to claim a word that the tests give."""
        if self.room is None or word == "inconclusive":
            return True
        low, high = self.room
        return -self.margin < low and high < self.margin if word == "equivalent" else not low <= 0 <= high

    @property
    def is_constant(self) -> bool:
        return bool(np.ptp(self.values) <= 1e-9 * max(self.margin, *map(abs, self.values)))


@dataclass(frozen=True)
class GradeContest:
    """The result for one measure of an arm against a baseline.

    pairs: of runs, or groups of samples
    difference: arm − baseline, in the measure's unit
    interval: of the difference, at 95 %
    p_difference, p_equivalence: with Holm's correction over all measures and contests
    sentence: the result with its numbers
    """

    arm: str
    baseline: str
    measure: str
    word: Word
    pairs: int
    difference: float
    interval: tuple[float, float]
    margin: float
    p_difference: float
    p_equivalence: float
    sentence: str


def judged(tested: Sequence[Differences], basis: Basis) -> list[GradeContest]:
    """Judge all differences together: the probability of any false claim is at most 5 %.

    Differences are tested in units of their margins, negative where the arm is better, by the same tests as losses. If
    both of a pair had the same grade everywhere, no variance tells how certain that is: they are equivalent if so many
    groups would have shown a difference as large as the margin.
    """
    same = [differences.is_constant and differences.mean == 0 for differences in tested]
    scaled = [
        # none of those that are the same, which the correction counts all the same
        [] if is_same else [_sign(each) * value / each.margin for value in each.values]
        for each, is_same in zip(tested, same)
    ]
    return [
        _all_the_same(each, len(tested), basis) if is_same else _contest(each, verdict, basis)
        for each, is_same, verdict in zip(tested, same, verdicts(scaled, margin=1.0))
    ]


def _sign(tested: Differences) -> int:
    return -1 if tested.measure.better == "higher" else 1


def _contest(tested: Differences, verdict: Verdict, basis: Basis) -> GradeContest:
    low, high = sorted(_sign(tested) * end * tested.margin for end in verdict.interval)
    if tested.is_constant and tested.measure.span:
        room = unseen_share(tested.groups) * tested.measure.span
        low, high = tested.mean - room, tested.mean + room
    reach = tested.measure.span if tested.measure.unit in RANGES and tested.measure.span else math.inf
    if not tested.allows(verdict.word) and tested.room is not None:
        low, high = tested.room
    interval = max(low, -reach), min(high, reach)
    return _result(tested, verdict.word, interval, verdict.p_difference, verdict.p_equivalence, basis)


def _all_the_same(tested: Differences, contests: int, basis: Basis) -> GradeContest:
    span = tested.measure.span
    room = math.inf if span is None else unseen_share(tested.groups) * span
    p = 1.0 if span is None else min(1.0, contests * (1 - min(1.0, tested.margin / span)) ** tested.groups)
    word: Word = "equivalent" if p <= LEVEL and len(tested.values) >= LEAST_PAIRS else "inconclusive"
    return _result(tested, word, (-room, room), 1.0, p, basis)


def _result(
    tested: Differences,
    word: Word,
    interval: tuple[float, float],
    p_difference: float,
    p_equivalence: float,
    basis: Basis,
) -> GradeContest:
    result = GradeContest(
        arm=tested.arm,
        baseline=tested.baseline,
        measure=tested.measure.name,
        word=word if tested.allows(word) else "inconclusive",
        pairs=len(tested.values),
        difference=tested.mean,
        interval=interval,
        margin=tested.margin,
        p_difference=p_difference,
        p_equivalence=p_equivalence,
        sentence="",
    )
    return replace(result, sentence=explained(result, tested.measure, basis, tested.allows(word)))


TOO_FEW = "Too few samples have a value of it to claim that either is better, or that they are equivalent."


# ---- sentences ------------------------------------------------------------------------------------


def explained(contest: GradeContest, measure: Measure, basis: Basis, is_allowed: bool) -> str:
    """Return the result of a contest in two or three sentences.

    Args:
        is_allowed: whether enough samples have a value to claim what the tests give.
    """
    links = {
        "better": "is better than",
        "worse": "is worse than",
        "equivalent": "is equivalent to",
        "inconclusive": "against",
    }
    unit = format_of(measure)
    higher = "higher" if contest.difference > 0 else "lower" if contest.difference < 0 else "apart"
    low, high = contest.interval
    known = math.isfinite(high - low)
    interval = f" (95 % interval {unit.signed(low)} to {unit.signed(high)})" if known else ""
    pairs = f"{contest.pairs} {'pairs of runs' if basis == 'seeds' else 'groups of samples'}"
    outcome = ": inconclusive" if contest.word == "inconclusive" else ""
    title = measure.title[:1].upper() + measure.title[1:]
    first = f"{title}: {contest.arm} {links[contest.word]} {contest.baseline}{outcome}."
    numbers = (
        f"{pairs}: {unit.plain(abs(contest.difference))} {higher}{interval}, p {_p(contest.p_difference)}."
    )
    concluded = _concluded(contest, unit) if is_allowed else TOO_FEW
    return " ".join(filter(None, [first, numbers, concluded]))


def _concluded(contest: GradeContest, unit: Format) -> str:
    margin, p = unit.plain(contest.margin), _p(contest.p_equivalence)
    if contest.word == "equivalent":
        return f"The difference is less than {margin} either way (p {p})."
    if contest.word != "inconclusive":
        return ""
    if contest.pairs < LEAST_PAIRS:
        return f"The tests need at least {LEAST_PAIRS} of them."
    return f"Neither a difference nor equivalence within {margin} (p {p}) is established."


@dataclass(frozen=True)
class Format:
    """How values of a measure are written.

    value: a value, such as 62.5 %
    number: a difference as a number without its sign, such as 3.1
    unit: of differences, such as points
    """

    value: Callable[[float], str]
    number: Callable[[float], str]
    unit: str

    def plain(self, difference: float) -> str:
        """Return a difference with its unit."""
        return f"{self.number(difference)} {self.unit}".rstrip()

    def signed(self, difference: float) -> str:
        """Return a difference with its sign."""
        return f"{'−' if difference < 0 else '+'}{self.number(abs(difference))}"


def format_of(measure: Measure) -> Format:
    """Return how values and differences of a measure are written."""
    if measure.unit == "share":
        return Format(lambda value: f"{100 * value:.1f} %", lambda value: f"{100 * value:.1f}", "points")
    if measure.unit == "out of 10":
        return Format(lambda value: f"{value:.2f}", lambda value: f"{value:.2f}", "")
    if measure.unit == "characters":
        return Format(lambda value: f"{value:,.0f}", of_characters, "characters")
    return Format(lambda value: f"{value:.3g}", lambda value: f"{value:.3g}", measure.unit)


def of_characters(difference: float) -> str:
    return f"{difference:,.1f}" if abs(difference) >= 1 else f"{difference:.2g}"


def title_of(measure: Measure) -> str:
    """Return a measure's title with its unit; in brackets if it is described, not judged."""
    is_clear = measure.unit == "share" or measure.unit in measure.title
    title = measure.title if is_clear else f"{measure.title}, {measure.unit}"
    return f"({title})" if measure.better == "neither" else title


def _p(value: float) -> str:
    text = units.p_value(value)
    return text if text.startswith("<") else f"= {text}"
