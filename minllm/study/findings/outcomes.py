"""What reports say about the predictions of a finding, and the decision that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minllm.study.metric import METRICS
from minllm.study.statistics import verdicts

Decision = Literal["replicated", "contradicted", "undecided"]
OPEN = ("inconclusive", "unstable", "unknown")
"""Outcomes that neither confirm nor contradict a prediction."""
Report = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a prediction.

    of: a part of the finding, at scale, change, or ""
    arm, baseline: what is compared; as named in the report
    predicted: the words that the claim allows
    word: the outcome
    difference, interval: of the arm from the baseline; None where there is none, or no finite one
    pairs: of runs with the same seed
    unit: of the difference
    """

    of: str
    arm: str
    baseline: str
    predicted: Sequence[str]
    word: str
    difference: float | None = None
    interval: Sequence[float | None] | None = None
    pairs: int | None = None
    unit: str = ""


def decision(outcomes: Sequence[Outcome]) -> Decision:
    """Return what the outcomes say together: a single one that the claim excludes contradicts it."""
    if any(outcome.word not in (*outcome.predicted, *OPEN) for outcome in outcomes):
        return "contradicted"
    return "replicated" if all(outcome.word in outcome.predicted for outcome in outcomes) else "undecided"


def of_contest(report: Report, arm: str, of: str, predicted: Sequence[str], *, bounds: bool) -> Outcome:
    """Return the outcome of an arm against the baseline.

    Args:
        arm: its name in the report.
        bounds: whether an outcome that is established of upper bounds alone counts.
    """
    contest = contest_of(report, arm)
    if contest is None:
        return Outcome(of, arm, "", predicted, "inconclusive")
    verdict = contest["verdict"]
    word = verdict["word"] if verdict["word"] != "inconclusive" else contest["outcome"]
    if bounds and verdict["word"] == "inconclusive" and verdict.get("unproved"):
        word = verdict["unproved"]
    numbers = {name: verdict[name] for name in ("difference", "interval", "pairs")}
    return Outcome(of, arm, contest["baseline"], predicted, word, **numbers, unit=unit_of(report))


def at_scale(report: Report, arm: str, of: str, predicted: Sequence[str]) -> Outcome:
    """Return what becomes of an arm's difference at scale, with its value at the largest rung."""
    answers = [ladder["answer"] for ladder in report["ladders"] if ladder["arm"] == arm and ladder["answer"]]
    if not answers:
        return Outcome(of, arm, "", predicted, "unknown")
    largest = answers[0]["fitted"][-1]
    return Outcome(
        of, arm, report["baseline"], predicted, answers[0]["word"], largest["value"], largest["interval"]
    )


def at_smallest(report: Report, arm: str, of: str, predicted: Sequence[str]) -> Outcome:
    """Return how an arm compares at the smallest rung of a ladder, by the fit through all of them."""
    answers = [ladder["answer"] for ladder in report["ladders"] if ladder["arm"] == arm and ladder["answer"]]
    if not answers:
        return Outcome(of, arm, "", predicted, "unknown")
    smallest = answers[0]["fitted"][0]
    low, high = smallest["interval"]
    word = (
        "inconclusive"
        if low is None or high is None or low <= 0 <= high
        else "worse"
        if low > 0
        else "better"
    )
    return Outcome(
        of, arm, report["baseline"], predicted, word, smallest["value"], (low, high), unit=unit_of(report)
    )


def change(first: Report, last: Report, arm: str, of: str, predicted: Sequence[str]) -> Outcome:
    """Return whether an arm's difference has changed from the first part to the last, by pairs of the same seeds.

    The margin is that of the first part. Both parts are looked at once, so that this is a single look, too.
    """
    contests = [contest_of(report, arm) for report in (first, last)]
    if contests[0] is None or contests[1] is None:
        return Outcome(of, arm, "", predicted, "inconclusive")
    before, after = ({pair["seed"]: pair["difference"] for pair in contest["pairs"]} for contest in contests)
    changes = [after[seed] - before[seed] for seed in sorted(before.keys() & after.keys())]
    (verdict,) = verdicts([changes], margin=contests[0]["verdict"]["margin"], unit=unit_of(first))
    return Outcome(
        of,
        arm,
        contests[0]["baseline"],
        predicted,
        verdict.word,
        verdict.difference,
        verdict.interval,
        verdict.pairs,
        unit_of(first),
    )


def contest_of(report: Report, arm: str) -> Mapping[str, Any] | None:
    return next((contest for contest in report["contests"] if contest["arm"] == arm), None)


def unit_of(report: Report) -> str:
    """Return the unit of a report's differences."""
    metric = METRICS.get(report.get("metric", ""))
    return metric.unit if metric else str(report.get("unit", ""))
