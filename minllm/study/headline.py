"""The answer of a comparison in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minllm.page import units
from minllm.study.arms import Arm
from minllm.study.scaling.ladders import AXES, Ladder

if TYPE_CHECKING:
    from minllm.study.comparison import Comparison

FEW = 3
"""The most contests whose outcomes are all named."""


def headline(comparison: Comparison) -> str:
    """Return the answer in one sentence, which names what decides unless it is bits per byte."""
    metric = comparison.metric
    return f"By {metric.name}: {_answer(comparison)}" if metric.is_share else _answer(comparison)


def _answer(comparison: Comparison) -> str:
    """Return the answer; of choices at several sizes, what becomes of their difference."""
    if comparison.ladders:
        return " ".join(map(at_scale, comparison.ladders))
    if not comparison.contests:
        return (
            "; ".join(
                f"{noise.arm.name or 'The arm'} against itself: {noise.verdict.word}"
                for noise in comparison.noise
            )
            + "."
        )
    if len(comparison.contests) == 1:
        return comparison.contests[0].sentence.partition(". ")[0] + "."
    return _among_several(comparison) + _not_yet(comparison)


def at_scale(ladder: Ladder) -> str:
    """Return what becomes of a difference at scale, in one sentence."""
    arm, baseline, answer = ladder.arm, ladder.baseline, ladder.answer
    if answer is None or answer.word == "unknown":
        return f"What becomes of the difference between {arm} and {baseline}{ladder.at} at scale is unknown."
    if answer.word == "crosses":
        assert answer.crossing is not None
        size = f"{units.count(answer.crossing.value)} {AXES[ladder.axis]}"
        return f"The difference between {arm} and {baseline}{ladder.at} changes its sign at about {size}."
    is_better = answer.fitted[-1].value < 0
    better, worse = (arm, baseline) if is_better else (baseline, arm)
    return f"{better} is better than {worse}{ladder.at}, and the difference {answer.word} at scale."


def _among_several(comparison: Comparison) -> str:
    best = [arm for arm in comparison.arms if _beats_all(comparison, arm)]
    if best:
        return f"{best[0].name} is better than {'all others' if len(comparison.arms) > 2 else 'the other'}."
    if len(comparison.contests) <= FEW:
        outcomes = [
            f"{contest.arm.name} against {contest.baseline.name}: {contest.explained_outcome}"
            for contest in comparison.contests
        ]
        return "; ".join(outcomes) + "."
    return _counted(comparison)


def _not_yet(comparison: Comparison) -> str:
    """Return what is established within this study, but not yet among all ideas."""
    waiting = [
        f"{contest.arm.name} against {contest.baseline.name} ({contest.standing.needs(contest.verdict)})"
        for contest in comparison.contests
        if contest.standing and contest.standing.is_open(contest.verdict)
    ]
    return f" On its own, not yet among all ideas: {', '.join(waiting)}." if waiting else ""


def _counted(comparison: Comparison) -> str:
    """Return the answer when there are too many contests to name."""
    contests = comparison.contests
    if any(contest.baseline is not comparison.baseline for contest in contests):
        reasons = "; ".join(dict.fromkeys(contest.reason for contest in contests if contest.reason))
        because = f" because {reasons}" if reasons else ""
        return f"None of the {len(comparison.arms)} arms is better than all others{because}."
    outcomes = [contest.explained_outcome for contest in contests]
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes)]
    return f"Of {len(outcomes)} arms against {comparison.baseline.name}: {', '.join(counts)}."


def _beats_all(comparison: Comparison, arm: Arm) -> bool:
    won = {
        id(contest.baseline)
        for contest in comparison.contests
        if contest.arm is arm and contest.verdict.word == "better"
    }
    won |= {
        id(contest.arm)
        for contest in comparison.contests
        if contest.baseline is arm and contest.verdict.word == "worse"
    }
    return won == {id(other) for other in comparison.arms if other is not arm}
