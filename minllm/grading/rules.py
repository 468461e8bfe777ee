"""The rules by which a judge passes the check: each is an exact binomial test, and Holm corrects for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minllm.estimates import clopper_pearson

ALPHA = 0.05
"""The probability that a judge passes any rule that it doesn't deserve to pass."""


@dataclass(frozen=True)
class Rule:
    """A claim about a judge, which is proven if its number of hits is too unlikely otherwise.

    name: in JSON and tables
    claim: what a judge does that passes, as a predicate: `notices wrong names`
    failure: the same for one that doesn't
    counts: what was counted, as a sentence that the share of hits completes
    hits: how often it happened
    trials: of how many independent ones
    chance: the probability of a hit that must be refuted
    proof: whether hits must be more or fewer than by that chance
    """

    name: str
    claim: str
    failure: str
    counts: str
    hits: int
    trials: int
    chance: float = 0.5
    proof: Literal["greater", "less"] = "greater"

    @property
    def p(self) -> float:
        from scipy.stats import binomtest  # takes half a second to import

        if not self.trials:
            return 1.0
        return float(binomtest(self.hits, self.trials, self.chance, alternative=self.proof).pvalue)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the share of hits (Clopper and Pearson)."""
        return clopper_pearson(self.hits, self.trials) if self.trials else None

    def sentence(self, adjusted: float) -> str:
        passed = adjusted <= ALPHA
        share = "none"
        if self.interval is not None:
            share = f"{percent(self.hits / self.trials)} [{percents(self.interval)}], p = {adjusted:.2g}"
        result = f"Passed: it {self.claim}" if passed else f"Not passed: it {self.failure}"
        return f"{result}. {self.counts} {share}."

    def facts(self, adjusted: float) -> dict[str, Any]:
        return {
            "name": self.name,
            "is_passed": adjusted <= ALPHA,
            "hits": self.hits,
            "trials": self.trials,
            "interval": self.interval,
            "chance": self.chance,
            "proof": self.proof,
            "p": self.p,
            "p_adjusted": adjusted,
        }


Pairs = Sequence["tuple[float, float] | None"]
"""Two grades of each pair, the first of which should be higher; None if one is missing."""


def above_in_most(name: str, claim: str, failure: str, what: str, pairs: Pairs) -> Rule:
    """Return the rule that the first text is graded higher in more than half of the pairs; ties count against it."""
    above, _, graded = tally(pairs)
    return Rule(name, claim, failure, f"{what} {counted(pairs)}:", above, graded)


def above_more_often(name: str, claim: str, failure: str, what: str, pairs: Pairs) -> Rule:
    """Return the rule that the first text is graded higher more often than lower: a sign test, without the ties."""
    above, below, _ = tally(pairs)
    return Rule(name, claim, failure, f"{what} {counted(pairs)}; of those that differ,", above, above + below)


def tally(pairs: Pairs) -> tuple[int, int, int]:
    """Return in how many pairs the first grade is above, in how many below, and how many have both grades."""
    graded = [pair for pair in pairs if pair is not None]
    return sum(a > b for a, b in graded), sum(a < b for a, b in graded), len(graded)


def counted(pairs: Pairs) -> str:
    above, below, graded = tally(pairs)
    missing = f" ({len(pairs) - graded} more lack a grade)" if graded < len(pairs) else ""
    return f"above in {above} of {graded} pairs{missing} and below in {below}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def percents(interval: tuple[float, float]) -> str:
    return " to ".join(map(percent, interval))
