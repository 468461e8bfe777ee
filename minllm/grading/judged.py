"""Grades by a language model, in the manner of TinyStories (2305.07759): an assessment first, then numbers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from minllm.data.source import Source
from minllm.grading.check import LEAST_TEXTS, calibrate
from minllm.grading.copying import COPYING_MEASURES, copies
from minllm.grading.grader import Grader
from minllm.grading.grades import Calibration, Duel, Grades, Measure, Values
from minllm.grading.judge import Answer, Judge, JudgeOption, Question
from minllm.grading.pairs import PLACEHOLDERS as PAIR_PLACEHOLDERS
from minllm.grading.pairs import duel
from minllm.grading.prompt import WITH_BEGINNING, WITHOUT_BEGINNING, Prompt, read_prompt
from minllm.grading.samples import Sample, Written
from minllm.schema.options import Place, Range

BEST = 10
GRADES = (
    Measure("grammar", "grammar", "out of 10", "higher", float(BEST)),
    Measure("creativity", "creativity", "out of 10", "higher", float(BEST)),
    Measure("consistency", "consistency", "out of 10", "higher", float(BEST)),
)
AGE = Measure("age", "age of the writer", "years", "neither", None)
YEARS = {"A": 3.0, "B": 4.5, "C": 6.5, "D": 8.5, "E": 11.0, "F": 14.5}
"""The middle of each age group; 3 stands for 3 years or younger."""

PROPERTIES = {
    "assessment": {"type": "string"},
    **{grade.name: {"type": "integer", "minimum": 0, "maximum": BEST} for grade in GRADES},
    AGE.name: {"type": "string", "enum": list(YEARS)},
}
SCHEMA = {
    "type": "object",
    "properties": PROPERTIES,
    "required": list(PROPERTIES),
    "additionalProperties": False,
}
PLACEHOLDERS = {WITH_BEGINNING: ("beginning", "completion"), WITHOUT_BEGINNING: ("text",)}

CheckTexts = Annotated[int, Range(f"a whole number of {LEAST_TEXTS} or more", LEAST_TEXTS)]


@dataclass(frozen=True, kw_only=True)
class Judged(Grader):
    """Grades by a judge. Its options, besides those of every grader:

    judge: the language model that is asked
    prompt: the file of the prompt for grades; null means that of minllm
    pair_prompt: the file of the prompt for pairs; null means that of minllm
    check_texts: with judge.check=true, how many held-out texts the judge is tested with
    """

    judge: JudgeOption
    prompt: Place | None = None
    pair_prompt: Place | None = None
    check_texts: CheckTexts = 20
    calibrations: dict[str, Calibration] = field(default_factory=dict, init=False, repr=False, compare=False)

    measures: ClassVar[tuple[Measure, ...]] = (*GRADES, AGE, *COPYING_MEASURES)

    def check(self, source: Source) -> None:
        """Read the prompts, which may lack a placeholder."""
        self._prompt, self._pair_prompt  # noqa: B018

    def calibrate(self, written: Sequence[Written]) -> Calibration | None:
        if not self._judge.check or not written:
            return None
        return self._calibration(written[0].source)

    def grade(self, written: Written) -> Grades:
        calibration = self.calibrate([written])
        answers = self._graded(written.samples)
        copied = copies(written.samples, written.source, written.tokenizer)
        notes = [] if calibration is None or calibration.is_passed else [calibration.sentences[0]]
        if None in answers:
            notes.append(
                f"{answers.count(None)} of {len(answers)} texts have no grade, because the judge gave no valid answer;"
                " means are over the others."
            )
        return Grades(
            written,
            {measure: values_of(measure, answers) for measure in (*GRADES, AGE)} | dict(copied.values),
            remarks=["" if answer is None else answer["assessment"] for answer in answers],
            facts=copied.facts,
            notes=[*notes, *copied.notes],
        )

    def compare(self, arm: Written, baseline: Written) -> Duel:
        return self._duel((arm.name, baseline.name), arm.samples, baseline.samples)

    def settings(self) -> dict[str, Any]:
        return {
            "judge": self._judge.name,
            "check": self._judge.check,
            "prompt": self.prompt or "built-in",
            "prompt_digest": self._prompt.digest,
            "pair_prompt": self.pair_prompt or "built-in",
            "pair_prompt_digest": self._pair_prompt.digest,
        }

    # ---- asking

    def _graded(self, samples: Sequence[Sample]) -> list[Answer | None]:
        return self._judge.ask([self._question(sample) for sample in samples])

    def _question(self, sample: Sample) -> Question:
        if sample.beginning:
            texts = {"beginning": sample.beginning, "completion": sample.text}
            return self._prompt.question(WITH_BEGINNING, texts, SCHEMA)
        return self._prompt.question(WITHOUT_BEGINNING, {"text": sample.text}, SCHEMA)

    def _duel(self, names: tuple[str, str], left: Sequence[Sample], right: Sequence[Sample]) -> Duel:
        return duel(self._judge, self._pair_prompt, names, left, right)

    def _calibration(self, source: Source) -> Calibration:
        """Return the result for the texts of a source, for which the judge is tested once."""
        key = source.fingerprint
        if key not in self.calibrations:
            compare = functools.partial(self._duel, ("real", "shuffled"))
            self.calibrations[key] = calibrate(source, self.check_texts, self._graded, compare)
        return self.calibrations[key]

    @functools.cached_property
    def _judge(self) -> Judge:
        return self.judge()  # once, because it counts its requests

    @functools.cached_property
    def _prompt(self) -> Prompt:
        return read_prompt("grade", PLACEHOLDERS, self.prompt, "grader.prompt")

    @functools.cached_property
    def _pair_prompt(self) -> Prompt:
        return read_prompt("pair", PAIR_PLACEHOLDERS, self.pair_prompt, "grader.pair_prompt")


def values_of(measure: Measure, answers: Sequence[Answer | None]) -> Values:
    """Return the values of a measure; texts without an answer have none."""
    amounts = [
        0.0 if answer is None else YEARS[answer["age"]] if measure is AGE else float(answer[measure.name])
        for answer in answers
    ]
    return Values(amounts, [0.0 if answer is None else 1.0 for answer in answers])
