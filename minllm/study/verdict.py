"""What the tests of one arm against a baseline concluded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Word = Literal["better", "equivalent", "worse", "inconclusive"]


@dataclass(frozen=True)
class Look:
    """The result of testing the pairs completed by one look.

    p_t, p_sign_flip, p_equivalence: p-values as if this were the only look and the only contest
    level, equivalence_level: what p_t and p_equivalence need at this look for the error rate of a single contest
    interval: of the difference, which the intervals at all looks together cover with probability `confidence`; what an
        earlier look has excluded stays so
    word: the outcome so far, corrected for the number of contests
    """

    pairs: int
    difference: float | None
    interval: tuple[float, float]
    p_t: float
    p_sign_flip: float
    p_equivalence: float
    level: float
    equivalence_level: float
    word: Word


@dataclass(frozen=True)
class Verdict:
    """The result of comparing one arm with the baseline on the seeds so far.

    All p-values are sequential: they hold whenever the study stops, and so does the interval.
    """

    word: Word
    pairs: int
    difference: float | None  # mean of (arm − baseline), in val_bpb, over the pairs in which neither diverged
    interval: tuple[
        float, float
    ]  # of the difference; infinite where a run diverged, or before the first look
    confidence: float
    margin: float  # in val_bpb: smaller differences, either way, don't matter
    p_t: float  # for no difference, from the paired t test; 1.0 where a run diverged
    p_sign_flip: float  # for no difference, from the permutation test; of ranks where a run diverged
    p_difference: float  # from both together, with Holm's correction over the contests
    p_equivalence: float  # for a difference of at least the margin, with Holm's correction
    p_overall: float  # for no difference, without Holm's correction and with the pairs after the look that settled it
    seeds_to_settle: int | None  # in total; None: more than 1,000, or it can't be estimated
    why: str  # the explanation, in a sentence or two
    settling: str = ""  # if inconclusive: how many pairs would settle it, as a sentence
    looks: tuple[Look, ...] = ()  # up to the one that settled it
    futile: bool = False  # whether it's inconclusive and the looks to come are unlikely to settle it
    unproved: Word | None = (
        None  # if inconclusive: what is established of the values, but proves nothing of bounds
    )
    diverged: tuple[int, int] = (0, 0)  # the pairs in which only the arm, and only the baseline, diverged
