"""The measures of a contest besides its mean difference: speed, equal budgets, seeds won, stability, and other texts.

None of this changes a verdict. Intervals are at 95 % each, without a correction for the number of contests.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from minllm.study import bounds
from minllm.study.arms import Arm
from minllm.study.divergence import diverged_seeds
from minllm.study.documents import ByDocument, by_document
from minllm.study.selection import LeftOut
from minllm.study.speedup import AXES, AtEqual, SpeedUps, at_equal, pairs_of, speed_ups
from minllm.study.stability import Stability, stability
from minllm.study.superiority import Superiority, Wins, superiority, wins
from minllm.study.verdict import Word

METRIC = "val_bpb"
"""Bits per byte: a loss that doesn't depend on how the tokenizer splits the text."""


@dataclass(frozen=True)
class Measures:
    """The measures of an arm against a baseline.

    provable: the words that the values of the two can prove of the arm
    pairs: with how many seeds neither diverged
    wins, superiority: a run that diverged has the worst loss; None if the arms have no seed in common
    speed: None if a run has no evaluations
    at_equal: at equal tokens, FLOPs and seconds; empty if a run has no evaluations
    by_document: None if it isn't known
    no_documents: why it isn't known, as a sentence
    """

    arm: str
    baseline: str
    provable: Collection[Word]
    pairs: int
    wins: Wins | None
    superiority: Superiority | None
    speed: SpeedUps | None
    at_equal: Sequence[AtEqual]
    stability: Stability
    by_document: ByDocument | None
    no_documents: str = ""


def measure(arm: Arm, baseline: Arm, left_out: Sequence[LeftOut]) -> Measures:
    """Return the measures of an arm against a baseline.

    Args:
        left_out: the runs that aren't compared, of which those that diverged have the worst loss.
    """
    seeds = [seed for seed in arm.runs if seed in baseline.runs]
    arms = (arm, baseline)
    values = tuple([side.runs[seed].summary[METRIC] for seed in seeds] for side in arms)
    own, others = (losses(side, left_out) for side in arms)
    paired = [seed for seed in own if seed in others]
    curves = pairs_of(arm, baseline, seeds)
    documents = by_document(arm, baseline, seeds)
    return Measures(
        arm=arm.name,
        baseline=baseline.name,
        provable=bounds.provable(arm, baseline),
        pairs=len(seeds),
        wins=wins([own[seed] - others[seed] for seed in paired]) if paired else None,
        superiority=superiority(list(own.values()), list(others.values())) if paired else None,
        speed=speed_ups(curves, _floor(arms)) if curves else None,
        at_equal=[at_equal(axis, curves) for axis in AXES] if curves else [],
        stability=stability(
            (arm.name, baseline.name),
            values,
            tuple([side.runs[seed] for seed in seeds] for side in arms),
            tuple(len(diverged_seeds(side, left_out)) for side in arms),
            tuple(len(side.runs) for side in arms),
        ),
        by_document=None if isinstance(documents, str) else documents,
        no_documents=documents if isinstance(documents, str) else "",
    )


def losses(arm: Arm, left_out: Sequence[LeftOut]) -> dict[int, float]:
    """Return an arm's bits per byte by seed, infinite where it diverged."""
    diverged = dict.fromkeys(diverged_seeds(arm, left_out), math.inf)
    return diverged | dict(zip(arm.runs, arm.values(METRIC)))


def _floor(arms: Sequence[Arm]) -> float | None:
    """Return the corpus's entropy, if every run knows it."""
    floors = {run.summary.get("floor_bpb") for arm in arms for run in arm.runs.values()}
    return floors.pop() if len(floors) == 1 else None
