"""The sentences that explain a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minllm.page import units
from minllm.study.futility import FUTILE
from minllm.study.power import MOST_PAIRS
from minllm.study.sample import Sample
from minllm.study.verdict import Word


@dataclass(frozen=True)
class Numbers:
    """The numbers that the sentences quote.

    sample: the differences
    interval: of the difference; infinite if there is none
    looks: planned numbers of pairs; empty for a single look
    least: with fewer pairs, no difference can be claimed with these looks and contests
    fewest: with fewer pairs, no difference can be claimed at all
    unproved: what is established of the values, although it proves nothing because one of them is an upper bound
    is_hopeless: whether more pairs like those so far couldn't prove anything
    unit: of the differences
    """

    sample: Sample
    interval: tuple[float, float]
    confidence: float
    margin: float
    p_difference: float
    p_equivalence: float
    looks: Sequence[int]
    least: int
    fewest: int
    unproved: Word | None = None
    is_hopeless: bool = False
    unit: str = "bits per byte"

    @property
    def is_tested(self) -> bool:
        return self.sample.pairs >= (self.looks[0] if self.looks else 1)


def explained(word: str, numbers: Numbers) -> str:
    """Return a sentence with the numbers, and one with the conclusion unless it is obvious from them."""
    return f"{_measured(numbers)} {_concluded(word, numbers)}".strip()


def settling(numbers: Numbers, seeds: int | None, futile: bool) -> str:
    """Return how many pairs would settle it, in a sentence or two."""
    if numbers.is_hopeless:
        return "More pairs like these can't settle it."
    if numbers.sample.pairs < 2:
        return "How many pairs would settle it can't be estimated from fewer than two."
    unlikely = ""
    if futile:
        chance = f"chance below {100 * FUTILE:.0f} %"
        unlikely = (
            f"The remaining looks, up to {numbers.looks[-1]} pairs, are unlikely to settle it ({chance}). "
        )
    if not numbers.sample.is_finite:
        return f"{unlikely}How many pairs would settle it can't be estimated where training diverged."
    if seeds is None:
        needed = f"It would take more than {MOST_PAIRS:,} pairs to settle it"
    else:
        needed = f"About {seeds:,} pairs in total would settle it"
    return f"{unlikely}{needed}, if the mean and the spread stay the same."


def _measured(numbers: Numbers) -> str:
    sample = numbers.sample
    if sample.pairs == 0:
        return "No pair of runs has finished."
    pairs = f"{sample.pairs} pair{'s' * (sample.pairs > 1)}: "
    p = f", p {_p(numbers.p_difference)}" if numbers.is_tested else ""
    direction = "lower" if sample.mean < 0 else "higher" if sample.mean > 0 else "apart"
    mean = f"{abs(sample.mean):.4f} {numbers.unit} {direction}"
    if not sample.is_finite:
        survived = (
            f"{mean} in the {sample.finite} in which neither diverged"
            if sample.finite
            else "at least one run of each diverged"
        )
        ranks = " by ranks, in which divergence is the worst" * any(sample.diverged)
        return f"{pairs}{survived}{p}{ranks}."
    low, high = numbers.interval
    near, far = sorted((abs(low), abs(high)))
    between = f"{-low:.4f} lower to {high:.4f} higher" if low < 0 < high else f"{near:.4f} to {far:.4f}"
    share = f"{100 * numbers.confidence:.3g} %"
    return f"{pairs}{mean}{f' ({share} interval {between})' * math.isfinite(high - low)}{p}."


def _concluded(word: str, numbers: Numbers) -> str:
    differs = numbers.p_difference <= 1 - numbers.confidence
    if word == "equivalent":
        small = f"less than {numbers.margin:.4f} either way (p {_p(numbers.p_equivalence)})"
        return f"The difference is {small}{': a real difference, but too small to matter' * differs}."
    if word != "inconclusive" or numbers.unproved:
        return ""
    if not numbers.is_tested and numbers.looks:
        return f"The first look is at {numbers.looks[0]} pairs."
    if numbers.sample.pairs < numbers.least:
        corrected = " with this many contests and looks" * (numbers.least > numbers.fewest)
        return f"The sign-flip test needs at least {numbers.least} pairs{corrected}."
    if not numbers.sample.is_finite:
        return "" if differs else "Neither is established to be worse."
    return (
        f"Neither a difference nor equivalence within {numbers.margin:.4f} (p {_p(numbers.p_equivalence)}) is"
        " established."
    )


def _p(p_value: float) -> str:
    text = units.p_value(p_value)
    return text if text.startswith("<") else f"= {text}"
