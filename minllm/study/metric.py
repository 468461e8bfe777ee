"""What decides a comparison: bits per byte, or the share of answers that are wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from minllm.errors import UserError

if TYPE_CHECKING:
    from minllm.study.arms import Arm

Name = Literal["val_bpb", "val_accuracy", "val_exact"]


@dataclass(frozen=True)
class Metric:
    """A value of each run, lower for better runs. Of an accuracy it is what is missing to 1.

    name: its key in summary.json
    unit: what a number of it is followed by
    measured: what it is measured in, in the introduction of a report
    is_share: whether it is a share, of which a margin is a difference and not a fraction
    most: the accuracy that counts as no better than any above it, because runs end there
    """

    name: Name
    unit: str
    measured: str
    is_share: bool = True
    most: float = 1.0

    def of(self, summary: Mapping[str, Any]) -> float:
        value = summary[self.name]
        return 1.0 - min(value, self.most) if self.is_share else value

    @property
    def perfect(self) -> float:
        """The value that can't be improved."""
        return 1.0 - self.most if self.is_share else 0.0


BITS = Metric("val_bpb", "bits per byte", "bits per byte of held-out text", is_share=False)
METRICS: Mapping[str, Metric] = {
    "val_bpb": BITS,
    "val_accuracy": Metric(
        "val_accuracy",
        "of the answers' tokens wrong",
        "the share of the answers' tokens that are predicted wrong, 1 − val_accuracy",
    ),
    "val_exact": Metric(
        "val_exact",
        "of the answers wrong",
        "the share of answers that aren't right in every token, 1 − val_exact",
    ),
}


def up_to_early_ends(metric: Metric, cfgs: Iterable[Mapping[str, Any]]) -> Metric:
    """Return the metric for runs with these configurations, which may end at an accuracy before their budget is spent.

    An accuracy counts up to the one at which runs end, so that it doesn't matter by how much their last evaluation
    exceeded it.
    """
    ends = early_ends(cfgs)
    return replace(metric, most=min(ends)) if ends and metric.name == "val_accuracy" else metric


def early_ends(cfgs: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the different accuracies at which runs with these configurations end, in increasing order."""
    ends = ((cfg.get("train") or {}).get("stop_at_accuracy") for cfg in cfgs)
    return sorted({end for end in ends if end is not None})


def refuse_without(metric: Metric, arms: Sequence[Arm]) -> None:
    """Raise UserError if a run of an arm lacks the metric."""
    for arm in arms:
        if any(metric.name not in run.summary for run in arm.runs.values()):
            raise UserError(
                f"{arm.name or 'The only arm'} has no {metric.name}, which needs data with answers and an objective"
                " that predicts one token after the other. Leave metric= out to compare bits per byte."
            )
