"""What reports say about the predictions of a finding, and the decision that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
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
    verdict, word = contest["verdict"], contest["outcome"]
    if not report.get("complete", True):  # an answer before the planned end would be a second look
        word = "inconclusive"
    elif bounds and verdict["word"] == "inconclusive" and verdict.get("unproved"):
        word = verdict["unproved"]
    numbers = {name: verdict[name] for name in ("difference", "interval", "pairs")}
    return Outcome(of, arm, contest["baseline"], predicted, word, **numbers, unit=unit_of(report))


def at_scale(report: Report, arm: str, of: str, predicted: Sequence[str], planned: Sequence[int]) -> Outcome:
    """Return what becomes of an arm's difference at scale, with its value at the largest rung.

    Args:
        planned: the number of pairs of each rung; with fewer, nothing is claimed yet.
    """
    ladder = ladder_of(report, arm, planned)
    if ladder is None:
        return Outcome(of, arm, "", predicted, "unknown")
    answer = ladder["answer"]
    return of_rung(report, arm, of, predicted, answer["word"], answer["fitted"][-1])


def at_smallest(
    report: Report, arm: str, of: str, predicted: Sequence[str], planned: Sequence[int]
) -> Outcome:
    """Return how an arm compares at the smallest rung of a ladder, by the fit through all of them.

    It is equivalent if the whole interval is within the margin at that rung.

    Args:
        planned: the number of pairs of each rung; with fewer, nothing is claimed yet.
    """
    ladder = ladder_of(report, arm, planned)
    if ladder is None:
        return Outcome(of, arm, "", predicted, "inconclusive")
    smallest = ladder["answer"]["fitted"][0]
    margin = report["margin"] * fmean(ladder["rungs"][0]["baseline"])
    return of_rung(report, arm, of, predicted, word_of(smallest["interval"], margin), smallest)


def word_of(interval: Sequence[float | None], margin: float) -> str:
    low, high = interval
    if low is None or high is None:
        return "inconclusive"
    if max(abs(low), abs(high)) <= margin:
        return "equivalent"
    return "worse" if low > 0 else "better" if high < 0 else "inconclusive"


def ladder_of(report: Report, arm: str, planned: Sequence[int]) -> Mapping[str, Any] | None:
    """Return the ladder of an arm; None if it has no answer, or a rung has fewer than the planned pairs."""
    for ladder in report["ladders"]:
        pairs = [len(rung["arm"]) for rung in ladder["rungs"]]
        if ladder["arm"] == arm and ladder["answer"] and pairs == list(planned):
            return ladder
    return None


def of_rung(
    report: Report, arm: str, of: str, predicted: Sequence[str], word: str, at: Mapping[str, Any]
) -> Outcome:
    """Return an outcome with the difference that is expected at a rung."""
    return Outcome(
        of, arm, report["baseline"], predicted, word, at["value"], at["interval"], unit=unit_of(report)
    )


def change(
    first: Report, last: Report, arm: str, of: str, predicted: Sequence[str], *, pairs: int
) -> Outcome:
    """Return whether an arm's difference has changed from the first part to the last, by pairs of the same seeds.

    The margin is that of the first part. Nothing is claimed without every planned pair in both parts: a seed with
    which training diverged is missing, and the others alone would be a selection.

    Args:
        pairs: the planned ones, at the only look.
    """
    contests = [contest_of(report, arm) for report in (first, last)]
    if contests[0] is None or contests[1] is None:
        return Outcome(of, arm, "", predicted, "inconclusive")
    before, after = ({pair["seed"]: pair["difference"] for pair in contest["pairs"]} for contest in contests)
    changes = [after[seed] - before[seed] for seed in sorted(before.keys() & after.keys())]
    margin, unit = contests[0]["verdict"]["margin"], unit_of(first)
    (verdict,) = verdicts([changes], margin=margin, looks=(pairs,), unit=unit)
    numbers = verdict.difference, verdict.interval, verdict.pairs
    return Outcome(of, arm, contests[0]["baseline"], predicted, verdict.word, *numbers, unit)


def contest_of(report: Report, arm: str) -> Mapping[str, Any] | None:
    return next((contest for contest in report["contests"] if contest["arm"] == arm), None)


def unit_of(report: Report) -> str:
    """Return the unit of a report's differences."""
    metric = METRICS.get(report.get("metric", ""))
    return metric.unit if metric else str(report.get("unit", ""))
