"""How often arms recalled facts, by kind of fact and by distance in tokens, where a grader counts that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minllm.estimates import clopper_pearson
from minllm.study.grades import Grading

RECALL = "recall_by_distance"
"""The key among a grader's facts: by kind, for each bin of distances, how many recalls there are, and are right."""
ANY = "any"
"""The kind that all others are part of, which is shown first."""


@dataclass(frozen=True)
class Share:
    """How often something was right, with the exact interval of as many independent values."""

    right: int
    of: int

    @property
    def share(self) -> float:
        return self.right / self.of if self.of else 0.0

    @property
    def low(self) -> float:
        return clopper_pearson(self.right, self.of)[0]

    @property
    def high(self) -> float:
        return clopper_pearson(self.right, self.of)[1]


@dataclass(frozen=True)
class Recall:
    """The counts of each arm, summed over its graded runs.

    labels: of the distances, the shortest first
    counts: by kind, by arm, for each distance
    """

    labels: Sequence[str]
    counts: Mapping[str, Mapping[str, Sequence[Share]]]

    @property
    def kinds(self) -> list[str]:
        return list(self.counts)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(arm for of_kind in self.counts.values() for arm in of_kind))

    def of(self, kind: str, arm: str, place: int) -> Share | None:
        shares = self.counts[kind].get(arm)
        return shares[place] if shares else None


def recall_by_distance(grading: Grading) -> Recall | None:
    """Return the recall of all arms; None if their grader doesn't count it."""
    totals: dict[str, dict[str, dict[str, Share]]] = {}
    for arm in grading.arms:
        for grades in arm.runs.values():
            for kind, bins in grades.facts.get(RECALL, {}).items():
                own = totals.setdefault(kind, {}).setdefault(arm.arm, {})
                for known in bins:
                    before = own.get(label := label_of(known), Share(0, 0))
                    own[label] = Share(before.right + known["right"], before.of + known["of"])
    labels = list(
        dict.fromkeys(label for of_kind in totals.values() for own in of_kind.values() for label in own)
    )
    counts = {
        kind: {arm: [own.get(label, Share(0, 0)) for label in labels] for arm, own in of_kind.items()}
        for kind, of_kind in sorted(totals.items(), key=lambda item: item[0] != ANY)
        if any(share.of for own in of_kind.values() for share in own.values())
    }
    return Recall(labels, counts) if counts else None


def label_of(known: Mapping[str, int | None]) -> str:
    """Return the distances of a bin: 17–32, or 129+."""
    return f"{known['least']}+" if known["most"] is None else f"{known['least']}–{known['most']}"
