"""What a comparison can prove if the bits per byte of an arm are an upper bound, as those of diffusion models are.

The true value of an arm with a bound is unknown, but not above the bound:

    arm      baseline    can be proved
    exact    exact       better, equivalent, worse
    bound    exact       better: the arm's true value is lower still
    exact    bound       worse: the baseline's true value is lower still
    bound    bound       of one family: all three, of the bounds themselves; else nothing

Bounds of different families rank models wrongly (2602.15014). A run that diverged is the worst outcome in any case.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from minllm.page import units
from minllm.study.arms import Arm, measured
from minllm.study.verdict import Verdict, Word


def provable(arm: Arm, baseline: Arm) -> Collection[Word]:
    """Return the words that the bits per byte of two arms can prove of the arm."""
    if arm.bound == baseline.bound:
        comparable = arm.bound == "exact" or arm.objective_family == baseline.objective_family
        return ("better", "equivalent", "worse") if comparable else ()
    return ("better",) if arm.bound == "upper" else ("worse",)


def reason(arm: Arm, baseline: Arm, verdict: Verdict) -> str:
    """Return why a contest is inconclusive because of a bound, as a clause; "" if it isn't."""
    if verdict.unproved is None:
        return ""
    bounds = _bounds(arm, baseline)
    if len(bounds) == 2:
        return (
            f"the values of {arm.name} and {baseline.name} are upper bounds of different families, which may rank"
            " models wrongly"
        )
    says = (
        "equivalence can't be proved" if verdict.unproved == "equivalent" else "a higher value proves nothing"
    )
    return f"the value of {bounds[0].name} is an upper bound, so {says}"


def remark(arm: Arm, baseline: Arm, verdict: Verdict) -> str:
    """Return a sentence on the bounds of two arms; "" if there are none, or if the reason says it."""
    bounds = _bounds(arm, baseline)
    if not bounds or verdict.unproved:
        return ""
    if len(bounds) == 2:
        return (
            "Both values are upper bounds, which may be loose to different degrees (2602.15014)."
            if provable(arm, baseline)
            else "Both values are upper bounds of different families, so no difference between them proves anything."
        )
    (bound,) = bounds
    if verdict.word == "inconclusive":
        return f"The value of {bound.name} is an upper bound, so only a lower value would prove anything."
    word, side = ("better", -1) if bound is arm else ("worse", 1)
    by_values = verdict.word == word and side * (verdict.difference or 0.0) > 0  # and not by divergence
    return (
        f"The value of {bound.name} is an upper bound, so its true value may be lower still."
        if by_values
        else ""
    )


def about(arms: Sequence[Arm]) -> str:
    """Return a sentence on the marks of bounds; "" if no arm has one."""
    return units.ABOUT_BOUNDS if any(arm.bound == "upper" for arm in measured(arms)) else ""


def _bounds(*arms: Arm) -> list[Arm]:
    return [arm for arm in arms if arm.bound == "upper"]
