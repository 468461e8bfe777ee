"""Two runs' samples of the same beginnings, compared by a judge: blind, in both orders, with ties.

The judge sees two texts without names. It is asked twice, the second time in the other order, so that a preference
for the text that is shown first can't favour a run: such a judge calls each of them better once. How often the order
decided is reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from minllm.estimates import Sums, share_interval
from minllm.grading.grades import Duel
from minllm.grading.judge import Answer, Judge, Question
from minllm.grading.prompt import WITH_BEGINNING, WITHOUT_BEGINNING, Prompt
from minllm.grading.samples import Sample

Better = Literal["first", "second", "tie"]
PLACEHOLDERS = {WITH_BEGINNING: ("beginning", "first", "second"), WITHOUT_BEGINNING: ("first", "second")}
SCHEMA = {
    "type": "object",
    "properties": {
        "assessment": {"type": "string"},
        "better": {"type": "string", "enum": ["first", "second", "tie"]},
    },
    "required": ["assessment", "better"],
    "additionalProperties": False,
}
WORTH = {"first": 1.0, "tie": 0.5, "second": 0.0}
"""What the text that is shown first wins."""


def duel(
    judge: Judge, prompt: Prompt, names: tuple[str, str], left: Sequence[Sample], right: Sequence[Sample]
) -> Duel:
    """Compare the samples of two runs, each with that of the same beginning and number.

    Texts from nothing are compared only if there are no others. Two identical texts are a tie, and nothing is asked.

    Raises:
        ValueError: the runs have different beginnings.
    """
    pairs = paired(left, right)
    differing = [index for index, (one, other) in enumerate(pairs) if one.text != other.text]
    orders = [pairs[index] for index in differing], [pairs[index][::-1] for index in differing]
    questions = [question(prompt, *shown) for order in orders for shown in order]
    answers = [better_of(answer) for answer in judge.ask(questions)]
    asked = dict(zip(differing, zip(answers[: len(differing)], answers[len(differing) :])))
    groups = [one.group for one, _ in pairs]
    decided, position = decisions(asked.values()), position_bias(asked, groups)
    return Duel(
        names=names,
        groups=groups,
        wins=[win(*asked[index]) if index in asked else 0.5 for index in range(len(pairs))],
        ties=share([better == "tie" for better in answers if better is not None]),
        agreement=share([win(*both) in (0.0, 1.0) or both == ("tie", "tie") for both in decided]),
        first=position[0],
        first_interval=position[1],
        notes=notes(len(pairs) - len(differing), asked, position),
    )


def paired(left: Sequence[Sample], right: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    if [sample.beginning for sample in left] != [sample.beginning for sample in right]:
        raise ValueError("the samples of two runs can only be compared if they have the same beginnings")
    pairs = list(zip(left, right))
    continued = [pair for pair in pairs if pair[0].beginning]
    return continued or pairs


def question(prompt: Prompt, first: Sample, second: Sample) -> Question:
    texts = {"first": first.text, "second": second.text}
    if first.beginning:
        return prompt.question(WITH_BEGINNING, {"beginning": first.beginning, **texts}, SCHEMA)
    return prompt.question(WITHOUT_BEGINNING, texts, SCHEMA)


def better_of(answer: Answer | None) -> Better | None:
    return None if answer is None else answer["better"]


# ---- what the answers mean -----------------------------------------------------------------------

Both = tuple["Better | None", "Better | None"]  # the answers for a pair in the one order and in the other


def win(shown_first: Better | None, shown_second: Better | None) -> float | None:
    """Return the share that the left text won, averaged over the orders; None where an answer is missing."""
    if shown_first is None or shown_second is None:
        return None
    return (WORTH[shown_first] + 1 - WORTH[shown_second]) / 2


def decisions(asked: Iterable[Both]) -> list[Both]:
    return [both for both in asked if None not in both]


def position_bias(
    asked: Mapping[int, Both], groups: Sequence[int]
) -> tuple[float, tuple[float, float]] | tuple[None, None]:
    """Return the share of wins that went to the text shown first, and its 95 % interval; None without wins."""
    firsts: dict[int, int] = defaultdict(int)
    wins: dict[int, int] = defaultdict(int)
    for index, both in asked.items():
        if None not in both:
            firsts[groups[index]] += both.count("first")
            wins[groups[index]] += 2 - both.count("tie")
    clusters = [group for group, count in wins.items() if count]
    if not clusters:
        return None, None
    first_G = np.array([firsts[group] for group in clusters], dtype=float)
    sums = Sums(first_G, np.array([wins[group] for group in clusters], dtype=float))
    low, high = share_interval(sums)
    return sums.value, (max(0.0, low), min(1.0, high))


def share(outcomes: Sequence[bool]) -> float | None:
    """Return the share of outcomes that are true; None if there are none."""
    return sum(outcomes) / len(outcomes) if outcomes else None


def notes(
    identical: int, asked: Mapping[int, Both], position: tuple[float, tuple[float, float]] | tuple[None, None]
) -> list[str]:
    sentences = []
    if identical:
        sentences.append(
            f"{identical} of {identical + len(asked)} pairs are identical texts, which are ties."
        )
    missing = sum(None in both for both in asked.values())
    if missing:
        sentences.append(
            f"{missing} of {len(asked)} pairs are left out, because the judge gave no valid answer."
        )
    first, interval = position
    if first is not None and interval is not None:
        sentences.append(
            f"{first:.0%} of the wins went to the text that was shown first (95 % interval {interval[0]:.0%} to"
            f" {interval[1]:.0%}; 50 % means no position bias). Each pair was shown in both orders, so this favours"
            " neither run."
        )
    return sentences
