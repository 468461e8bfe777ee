"""A grader for tests, and gradings of texts that no model has written."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from minllm.errors import UserError
from minllm.grading.grader import Grader
from minllm.grading.grades import Break, Calibration, Duel, Grades, Measure, Values
from minllm.grading.samples import Sample, Written
from minllm.study import grades as study_grades
from minllm.study.comparison import Comparison
from minllm.study.grades import Grading, grade_arms

RIGHT = Measure("right", "right words", "share", "higher", 1.0)
REACH = Measure("reach", "characters until a wrong word", "characters", "higher", None)
RARE = Measure("rare", "rare facts", "share", "higher", 1.0)
COUNT = Measure("words", "words", "words", "neither", None)
WRONG, RARELY = "wrong", 4


@dataclass(frozen=True, kw_only=True)
class Words(Grader):
    """Counts the words of each sample that aren't `wrong`, and breaks it at the first that is."""

    measures: ClassVar[tuple[Measure, ...]] = (RIGHT, REACH, RARE, COUNT)

    def grade(self, written: Written) -> Grades:
        words = [sample.text.split() for sample in written.samples]
        places = [sample.whole.find(WRONG, len(sample.beginning)) for sample in written.samples]
        reach = [
            (len(sample.whole) if place < 0 else place) - len(sample.beginning)
            for sample, place in zip(written.samples, places)
        ]
        one = [1.0] * len(words)
        return Grades(
            written,
            {
                RIGHT: Values(
                    [float(len(own) - own.count(WRONG)) for own in words], [float(len(own)) for own in words]
                ),
                REACH: Values([float(value) for value in reach], one),
                RARE: Values([0.0] * len(words), one[:RARELY] + [0.0] * (len(words) - RARELY)),
                COUNT: Values([float(len(own)) for own in words], one),
            },
            breaks=[
                None if place < 0 else Break(place, ("<b>right</b>", "left"), "word") for place in places
            ],
            remarks=["<i>So-so</i>." for _ in words],
            facts={
                "recall_by_distance": {
                    "names": [{"least": 1, "most": 16, "right": 1, "of": 4}],
                    "any": [
                        {"least": 1, "most": 16, "right": 3, "of": 4},
                        {"least": 17, "most": None, "right": 0, "of": 0},
                    ],
                }
            },
            notes=["Spelling isn't graded."],
        )


@dataclass(frozen=True, kw_only=True)
class Judging(Words):
    """The same, as a judge with a test and pairs."""

    def calibrate(self, written: Sequence[Written]) -> Calibration | None:
        return Calibration(
            True, ("texts", "n", "right"), [("real", 3, 0.9), ("shuffled", 3, None)], {}, ("It can tell.",)
        )

    def compare(self, arm: Written, baseline: Written) -> Duel | None:
        groups = [sample.group for sample in arm.samples]
        wins = [1.0 if place % 3 else None for place in range(len(groups))]
        return Duel((arm.name, baseline.name), groups, wins, 0.1, 0.9, 0.5, notes=("A third is missing.",))

    def settings(self) -> dict:
        return {"judge": "a stand-in"}


class Broken(Words):
    def grade(self, written: Written) -> Grades:
        raise UserError("The judge can't be reached.")


@dataclass(frozen=True)
class Said:
    """What an analysis consists of; see minllm/grading/analysis.py."""

    judge: str
    paragraphs: tuple[str, ...]
    not_found: tuple[str, ...]
    note: str


ANALYSIS = Said(
    "a <judge>", ("It is <b>better</b>.", "By 7 [not in the report]."), ("7",), "A judge's words."
)


def texts(name: str, seed: int, share: float, *, stories: int = 20, beginnings: int = 10) -> list[Sample]:
    """Return samples in which about this share of the words is right."""
    draw = random.Random(f"{name}/{seed}")

    def text() -> str:
        return " ".join("fox" if draw.random() < share else WRONG for _ in range(20))

    return [
        *(Sample("", text(), place) for place in range(stories)),
        *(Sample("Once <u> ", text(), stories + place // 2) for place in range(2 * beginnings)),
    ]


def grading(
    comparison: Comparison, grader: Grader | None = None, shares: dict[str, float] | None = None
) -> Grading:
    """Grade a comparison whose arms write texts with these shares of right words, by default 0.9, 0.6, 0.6, …"""
    known = shares or {arm.name: 0.6 if place else 0.9 for place, arm in enumerate(comparison.arms)}
    by_folder = {run.folder: (arm.name, seed) for arm in comparison.arms for seed, run in arm.runs.items()}

    def written(cfg, run, name, grader, device) -> Written:
        arm, seed = by_folder[run]
        if arm not in known:
            raise UserError("The model can't generate.")
        return Written(name, texts(arm, seed, known[arm]), SimpleNamespace(), SimpleNamespace())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_grades, "write", written)
        patch.setattr(study_grades, "configuration", lambda run, extensions: run.cfg)
        return grade_arms(comparison, grader or Judging(), torch.device("cpu"), ())
