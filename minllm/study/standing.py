"""How an outcome stands among all the ideas that were tried, and not only within its own study."""

from __future__ import annotations

from dataclasses import dataclass

from minllm.study.verdict import Verdict


@dataclass(frozen=True)
class Standing:
    """The test of one contest among all ideas of the ledger.

    number: the contest's place in the order in which ideas were started; that many had been tried with it
    level: the largest p-value with which it counts as a discovery, fixed before its first run
    claims: the outcomes that would be a discovery
    """

    number: int
    level: float
    claims: tuple[str, ...]

    def holds(self, verdict: Verdict) -> bool:
        """Whether the outcome is a discovery among all ideas."""
        return verdict.word in self.claims and verdict.p_overall <= self.level

    def is_open(self, verdict: Verdict) -> bool:
        """Whether the outcome is established on its own, but not yet among all ideas."""
        return verdict.word in self.claims and not self.holds(verdict)

    def clause(self, verdict: Verdict) -> str:
        """Return what the first sentence of a contest adds to its outcome; "" if nothing."""
        ideas = f"{self.number} idea{'s' * (self.number > 1)}: {self.needs(verdict)}"
        if self.is_open(verdict):
            return f" on its own, not yet among {ideas}"
        return f", also among {ideas}" if self.holds(verdict) else ""

    def needs(self, verdict: Verdict) -> str:
        return f"needs p ≤ {self.level:.2g}, has {verdict.p_overall:.2g}"
