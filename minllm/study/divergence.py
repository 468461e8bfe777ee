"""How often training diverged, which is an outcome like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minllm.study.arms import Arm, identity
from minllm.study.selection import LeftOut


@dataclass(frozen=True)
class Divergence:
    """The seeds with which the training of an arm and of the baseline diverged.

    arm_seeds, baseline_seeds: how many seeds each was trained with, paired or not
    p: of the exact McNemar test over the pairs, for equal frequency; for a single look
    """

    arm: Sequence[int]
    baseline: Sequence[int]
    arm_seeds: int
    baseline_seeds: int
    p: float

    @property
    def counts(self) -> tuple[str, str]:
        return (
            f"{len(self.arm)} of {self.arm_seeds}",
            f"{len(self.baseline)} of {self.baseline_seeds}",
        )


def divergence(arm: Arm, baseline: Arm, left_out: Sequence[LeftOut]) -> Divergence | None:
    """Return how often two arms diverged; None if neither did."""
    lost, others = diverged_seeds(arm, left_out), diverged_seeds(baseline, left_out)
    if not lost and not others:
        return None
    seeds, other_seeds = {*arm.runs, *lost}, {*baseline.runs, *others}
    paired = seeds & other_seeds
    only, other_only = (len(paired & (set(a) - set(b))) for a, b in ((lost, others), (others, lost)))
    return Divergence(lost, others, len(seeds), len(other_seeds), mcnemar(only, other_only))


def diverged_seeds(arm: Arm, left_out: Sequence[LeftOut]) -> list[int]:
    """Return the seeds with which an arm diverged, unless it was trained again with them."""
    return sorted(lost_seeds(arm, left_out, "diverged") - set(arm.runs))


def lost_seeds(arm: Arm, left_out: Sequence[LeftOut], *kinds: str) -> set[int]:
    """Return the seeds of an arm's runs that failed in one of these ways."""
    own = identity(arm.cfg)
    return {run.cfg["seed"] for run in left_out if run.lost in kinds and run.cfg and identity(run.cfg) == own}


def mcnemar(only: int, other_only: int) -> float:
    """Return the exact two-sided p-value for two frequencies of paired events, from the pairs with just one of them."""
    from scipy.stats import binomtest  # takes a second to import, and is rarely needed

    return float(binomtest(only, only + other_only).pvalue) if only + other_only else 1.0
