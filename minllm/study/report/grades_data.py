"""The grades of a report as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from minllm.estimates import Estimate
from minllm.study.graded_samples import Shown, best_and_worst, rule
from minllm.study.grades import ArmGrades, Grading, ratio
from minllm.study.report.grades import introduction, notes, warnings, won


def grades_data(grading: Grading) -> dict[str, Any]:
    """Return everything that the section shows; infinite ends of intervals become null when it is written."""
    shown = [arm.shown for arm in grading.arms if arm.shown]
    return {
        "grader": grading.grader,
        "settings": dict(grading.settings),
        "introduction": introduction(grading),
        "basis": grading.basis,
        "measures": [asdict(measure) for measure in grading.measures],
        "arms": [_arm(arm, grading) for arm in grading.arms],
        "contests": [asdict(contest) for contest in grading.contests],
        "duels": [
            {
                "arm": duel.names[0],
                "baseline": duel.names[1],
                "won": _estimate(won(duel)),
                "pairs": sum(share is not None for share in duel.wins),
                "ties": duel.ties,
                "agreement": duel.agreement,
                "first": duel.first,
                "notes": list(duel.notes),
            }
            for duel in grading.duels
        ],
        "calibration": asdict(grading.calibration) if grading.calibration else None,
        "rule": rule(shown[0]) if shown else "",
        "notes": [*warnings(grading), *notes(grading)],
    }


def grades_in_a_line(grading: Grading) -> list[dict[str, Any]]:
    """Return the outcome of each measure in each contest, as --json prints it."""
    return [
        {
            "arm": contest.arm,
            "baseline": contest.baseline,
            "measure": contest.measure,
            "outcome": contest.word,
            "difference": contest.difference,
            "interval": contest.interval,
        }
        for contest in grading.contests
    ]


def _arm(arm: ArmGrades, grading: Grading) -> dict[str, Any]:
    return {
        "arm": arm.arm,
        "why_not": arm.why_not,
        "values": {name: _estimate(value) for name, value in arm.values.items()},
        "runs": [
            {
                "seed": seed,
                "samples": len(grades.written.samples),
                "values": {measure.name: ratio(grades, measure) for measure in grading.measures},
                "facts": dict(grades.facts),
            }
            for seed, grades in arm.runs.items()
        ],
        "shown": [_sample(sample) for sample in best_and_worst(arm.shown)] if arm.shown else [],
    }


def _estimate(known: Estimate | None) -> dict[str, Any] | None:
    return None if known is None else {"value": known.value, "interval": list(known.interval)}


def _sample(sample: Shown) -> dict[str, Any]:
    return {
        "which": sample.which,
        "number": sample.index + 1,
        "beginning": sample.beginning,
        "text": sample.text,
        "values": sample.values,
        "break": asdict(sample.break_) if sample.break_ else None,
        "remark": sample.remark,
    }
