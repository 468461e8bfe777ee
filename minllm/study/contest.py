"""One arm against another, or against itself, and the sentences that describe the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from minllm.page import units
from minllm.study import bounds
from minllm.study.arms import Arm
from minllm.study.divergence import Divergence
from minllm.study.metric import BITS
from minllm.study.standing import Standing
from minllm.study.verdict import Verdict

SAME = "Every pair reached exactly the same loss, so what differs between the two had no effect on the computation."
TIED = (
    "Every pair has exactly the same value, which has no spread to estimate: with 95 % confidence, all that can be"
    " said about other seeds is that fewer than {share} of the pairs differ."
)


@dataclass(frozen=True)
class Contest:
    """One arm against another, in pairs of runs with the same seed.

    differences: the arm's bits per byte, or what else decides, minus the baseline's, by the seed of the pair, where
        neither diverged
    failed: whether runs crashed or went wrong at some seeds, so that more seeds can't settle it
    divergence: how often training diverged, unless it never did
    reason: why more pairs can't settle it, or why an arm that couldn't be tuned is worse, as a clause for the first
        sentence; "" if neither applies
    standing: how it stands among all ideas tried, if it was tested among them
    unit: of the differences
    """

    arm: Arm
    baseline: Arm
    differences: Mapping[int, float]
    verdict: Verdict
    failed: bool = False
    divergence: Divergence | None = None
    reason: str = ""
    standing: Standing | None = None
    unit: str = "bits per byte"

    @property
    def is_settled(self) -> bool:
        """Whether more pairs wouldn't change anything, or are unlikely to."""
        return self.failed or self.verdict.futile or self.is_answered

    @property
    def is_answered(self) -> bool:
        """Whether it has an outcome other than inconclusive, and one that holds among all ideas if it has to."""
        is_open = self.standing is not None and self.standing.is_open(self.verdict)
        return self.verdict.word != "inconclusive" and not is_open

    @property
    def unstable(self) -> Arm | None:
        """The one of the two that diverged more often and is better only where it didn't; None if there is none."""
        (arm, baseline), difference = self.verdict.diverged, self.verdict.difference or 0.0
        if arm > baseline and difference < 0:
            return self.arm
        if baseline > arm and difference > 0:
            return self.baseline
        return None

    @property
    def outcome(self) -> str:
        """The verdict's word; unstable where it is inconclusive because one of the two diverged more often."""
        is_unstable = self.verdict.word == "inconclusive" and self.unstable and not self.reason
        return "unstable" if is_unstable else self.verdict.word

    @property
    def explained_outcome(self) -> str:
        """The outcome, with the reason why more pairs can't settle it if that is known."""
        return f"{self.outcome} because {self.reason}" if self.reason else self.outcome

    @property
    def is_tied(self) -> bool:
        """Whether no pair differs in what decides."""
        return len(self.differences) > 1 and not any(self.differences.values())

    @property
    def is_the_same(self) -> bool:
        """Whether every pair reached exactly the same loss, as arms that compute the same thing do."""
        pairs = ((self.arm.runs[seed], self.baseline.runs[seed]) for seed in self.seeds)
        return self.is_tied and all(BITS.of(own.summary) == BITS.of(other.summary) for own, other in pairs)

    @property
    def seeds(self) -> list[int]:
        return list(self.differences)

    @property
    def sentence(self) -> str:
        remark = bounds.remark(self.arm, self.baseline, self.verdict)
        parts = [
            *(self._answer(), self._diverged(), self.verdict.why, remark, self.verdict.settling),
            self._without_spread(),
        ]
        return " ".join(filter(None, parts))

    def _answer(self) -> str:
        """The first sentence."""
        word, unstable, divergence = self.verdict.word, self.unstable, self.divergence
        if unstable and divergence and not self.reason:
            other = self.baseline if unstable is self.arm else self.arm
            own, against = divergence.counts if unstable is self.arm else reversed(divergence.counts)
            worse = f" and worse than {other.name}" * (word != "inconclusive")
            return (
                f"{unstable.name} is unstable{worse}: training diverged with {own} seeds (against {against} of"
                f" {other.name}), although it reached {abs(self.verdict.difference or 0.0):.4f} {self.unit} less"
                " where it didn't."
            )
        links = {
            "better": "is better than",
            "worse": "is worse than",
            "equivalent": "is equivalent to",
            "inconclusive": "against",
        }
        outcome = f": {word}" if word == "inconclusive" else ""
        because = f" because {self.reason}" if self.reason else ""
        among = self.standing.clause(self.verdict) if self.standing else ""
        return f"{self.arm.name} {links[word]} {self.baseline.name}{outcome}{because}{among}."

    def _without_spread(self) -> str:
        """Why no pair differs, or the exact upper bound of the share that does with other seeds; "" if pairs differ."""
        if self.is_the_same or not self.is_tied:
            return SAME * self.is_the_same
        return TIED.format(share=units.share(1 - 0.05 ** (1 / len(self.seeds))))

    def _diverged(self) -> str:
        if self.divergence is None:
            return ""
        own, others = self.divergence.counts
        return (
            f"Training diverged with {own} seeds of {self.arm.name} and {others} of {self.baseline.name}"
            f" (exact McNemar test: p = {self.divergence.p:.2g})."
        )


@dataclass(frozen=True)
class Noise:
    """An arm against itself: its runs in pairs of different seeds.

    floor: in 95 % of cases, the difference between two of its runs is within ± this many bits per byte; None for a
        single seed
    failed: whether training failed at some seeds
    """

    arm: Arm
    verdict: Verdict
    floor: float | None
    failed: bool = False

    @property
    def is_settled(self) -> bool:
        return self.failed or self.verdict.futile or self.is_answered

    @property
    def is_answered(self) -> bool:
        return self.verdict.word != "inconclusive"


Judged = TypeVar("Judged", Contest, Noise)
