"""The report as data: report.json contains exactly what the page shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minllm.errors import UNPRINTABLE
from minllm.study.arms import ABSENT, Arm, config_differences, floor_of
from minllm.study.comparison import METRIC, Comparison, Contest
from minllm.study.grades import Grading
from minllm.study.reading import Reading
from minllm.study.report import scaling, sentences
from minllm.study.report.commands import commands
from minllm.study.report.curves import curve
from minllm.study.report.grades_data import grades_data, grades_in_a_line
from minllm.study.report.rows import row
from minllm.study.report.tuning import efforts, tuning_data

if TYPE_CHECKING:
    from minllm.grading.analysis import Analysis

FORMAT = 2
"""The version of report.json and of the line that --json prints; docs/report.schema.json describes both."""


def to_json(
    comparison: Comparison,
    readings: Sequence[Reading],
    ledger: Mapping[str, Any] | None = None,
    grading: Grading | None = None,
    analysis: Analysis | None = None,
) -> str:
    """Return the text of report.json, in which NaN and infinite numbers are null.

    Args:
        ledger: of a verdict, its entry in the ledger.
        grading: the grades of the arms, if they were graded.
        analysis: what a judge says about the report, if it was asked.
    """
    content = {
        "format": FORMAT,
        "status": status(comparison),
        "headline": comparison.headline,
        "metric": comparison.metric.name,
        "baseline": comparison.baseline.name,
        "margin": comparison.margin,
        "introduction": sentences.introduction(comparison),
        "methods": sentences.judged(comparison),
        "warnings": sentences.warnings(comparison),
        "contests": [_contest(contest) for contest in comparison.contests],
        "measures": [asdict(measures) for measures in comparison.measures],
        "noise": [
            {
                "arm": noise.arm.name,
                "sentence": sentence,
                "floor": noise.floor,
                "verdict": asdict(noise.verdict),
            }
            for noise, sentence in zip(comparison.noise, sentences.noise(comparison))
        ],
        "ladders": scaling.data(comparison.ladders),
        "facts": [asdict(fact) for fact in comparison.facts],
        "floor_bpb": floor_of(comparison.arms),
        "curves": [asdict(curve(arm)) for arm in comparison.arms],
        "arms": [{**row(arm), "runs": _runs(arm)} for arm in comparison.arms],
        "tuning": {
            name: tuning_data(tuning, comparison.metric) for name, tuning in comparison.tuning.items()
        },
        "tuning_effort": [asdict(effort) for effort in efforts(comparison)],
        "differences": [
            {
                "key": key,
                "values": {
                    arm.name: value for arm, value in zip(comparison.arms, values) if value is not ABSENT
                },
            }
            for key, values in config_differences(comparison.arms).items()
        ],
        "grades": grades_data(grading) if grading else None,
        "analysis": asdict(analysis) if analysis else None,
        "readings": [asdict(reading) for reading in readings],
        "left_out": [{"folder": folder, "why": why} for folder, why in sentences.left_out(comparison)],
        "commands": commands(comparison),
        "ledger": ledger,
    }
    return json_text(content)


def json_text(content: Mapping[str, Any]) -> str:
    """Return the text of a JSON file, without characters that a terminal obeys; NaN and infinite numbers are null."""
    text = json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def in_a_line(
    comparison: Comparison,
    report: Path | None,
    ledger: Mapping[str, Any] | None,
    grading: Grading | None = None,
) -> dict[str, Any]:
    """Return a summary of the outcome, as --json prints it; `report` is the path of report.json, if there is one."""
    contests = [
        {
            "arm": contest.arm.name,
            "baseline": contest.baseline.name,
            "outcome": contest.outcome,
            "reason": contest.reason,
            **{
                name: getattr(contest.verdict, name)
                for name in ("difference", "interval", "confidence", "pairs")
            },
            "standing": _standing(contest),
        }
        for contest in comparison.contests
    ]
    return plain(
        {
            "format": FORMAT,
            "status": status(comparison),
            "headline": comparison.headline,
            "metric": comparison.metric.name,
            "warnings": sentences.warnings(comparison),
            "contests": contests,
            "noise": [
                {"arm": noise.arm.name, "floor": noise.floor, "outcome": noise.verdict.word}
                for noise in comparison.noise
            ],
            "ladders": scaling.in_a_line(comparison.ladders),
            "grades": grades_in_a_line(grading) if grading else None,
            "report": report,
            "ledger": ledger,
        }
    )


def failure(sentence: str) -> dict[str, Any]:
    """Return the line that --json prints if no arm can be compared yet."""
    empty: dict[str, Any] = {name: [] for name in ("warnings", "contests", "noise", "ladders")}
    line = {"format": FORMAT, "status": "not settled", "headline": sentence, **empty}
    return {**line, "report": None, "ledger": None}


def status(comparison: Comparison) -> str:
    return "settled" if comparison.is_answered else "not settled"


def _standing(contest: Contest) -> dict[str, Any] | None:
    if contest.standing is None:
        return None
    return {
        "number": contest.standing.number,
        "level": contest.standing.level,
        "p": contest.verdict.p_overall,
        "holds": contest.standing.holds(contest.verdict),
    }


def _contest(contest: Contest) -> dict[str, Any]:
    return {
        "arm": contest.arm.name,
        "baseline": contest.baseline.name,
        "sentence": contest.sentence,
        "outcome": contest.outcome,
        "reason": contest.reason,
        "verdict": asdict(contest.verdict),
        "pairs": [{"seed": seed, "difference": value} for seed, value in contest.differences.items()],
        "divergence": contest.divergence and asdict(contest.divergence),
        "standing": _standing(contest),
    }


def _runs(arm: Arm) -> list[dict[str, Any]]:
    return [
        {"seed": seed, METRIC: run.summary[METRIC], "folder": str(run.folder)}
        for seed, run in arm.runs.items()
    ]


def plain(value: Any) -> Any:
    """Return a value in the types of JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
