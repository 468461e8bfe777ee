"""The best and the worst sample of a run, chosen by a rule and not by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minllm.grading.grades import Break, Grades, Measure

DECISIVE = 2
"""How many measures order the samples of a run; the first of those that are equal in all of them is shown."""


@dataclass(frozen=True)
class Shown:
    """A sample with everything that was said about it.

    which: `best` or `worst`
    index: its place among the samples of the run
    values: of the measures that it has a value of, by their names
    """

    which: str
    index: int
    beginning: str
    text: str
    values: dict[str, float]
    break_: Break | None
    remark: str


def deciding(grades: Grades) -> list[Measure]:
    """Return the measures that order samples: the first judged ones that each sample has a value of."""
    judged = [
        measure
        for measure, values in grades.values.items()
        if measure.better != "neither" and all(values.counts)
    ]
    return judged[:DECISIVE]


def rule(grades: Grades) -> str:
    """Return how the best and the worst sample are chosen, as a sentence."""
    titles = [measure.title for measure in deciding(grades)]
    if not titles:
        return "No measure has a value of every sample, so the first sample is shown."
    return (
        f"The best and the worst sample of a run are chosen by {', then by '.join(titles)}; the first of equal samples"
        " is shown."
    )


def best_and_worst(grades: Grades) -> list[Shown]:
    """Return the best and the worst sample; only one if all samples are equal."""
    samples = grades.written.samples
    if not samples:
        return []
    signs = {measure: -1 if measure.better == "lower" else 1 for measure in deciding(grades)}
    keys = [
        tuple(sign * (grades.values[measure].value(index) or 0.0) for measure, sign in signs.items())
        for index in range(len(samples))
    ]
    best, worst = keys.index(max(keys)), keys.index(min(keys))
    return [shown("best", best, grades), *([shown("worst", worst, grades)] if worst != best else [])]


def shown(which: str, index: int, grades: Grades) -> Shown:
    sample = grades.written.samples[index]
    values = {measure.name: values.value(index) for measure, values in grades.values.items()}
    return Shown(
        which,
        index,
        sample.beginning,
        sample.text,
        {name: value for name, value in values.items() if value is not None},
        at(grades.breaks, index, None),
        at(grades.remarks, index, ""),
    )


def at(items: Sequence, index: int, default):
    """Return the item of a sample; the default if the grader has none for any sample."""
    return items[index] if items else default
