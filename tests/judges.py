"""Judges with a known character, each a function of the question; `python -m tests.judges` prints how the check finds
them out, which is the table of docs/judges.md."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from minllm.data.tales import Tales
from minllm.data.tales import read as read_tale
from minllm.grading import check
from minllm.grading.grades import Calibration
from minllm.grading.judge import Answer, Judge, Question
from minllm.grading.judged import Judged
from minllm.page import markdown

Policy = Callable[[Question], Mapping[str, Any] | None]
MARKED = re.compile(r"\[(\w+) ([0-9a-f]{16})\]\n(.*?)\n\[end of \1 \2\]", re.DOTALL)
RULES = ("words", "sentences", "ending", "fact", "pairs", "injection")


@dataclass(frozen=True, kw_only=True)
class Scripted(Judge):
    """A judge that answers as a function does, and keeps what it was asked."""

    policy: Policy
    check: bool = True
    asked: list[Question] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "scripted"

    def ask(self, questions: Sequence[Question]) -> list[Answer | None]:
        self.asked.extend(questions)
        return [self.policy(question) for question in questions]


def texts_in(question: Question) -> dict[str, str]:
    """Return the foreign texts of a question by the name of their marks."""
    return {name: text for name, _, text in MARKED.findall(question.text)}


def judged(policy: Policy, **options: Any) -> Judged:
    judge = Scripted(policy=policy)
    return Judged(judge=lambda: judge, **options)


def grades(grammar: float, consistency: float | None = None, creativity: int = 5) -> dict[str, Any]:
    consistency = grammar if consistency is None else consistency
    return {
        "assessment": "I have read it.",
        "grammar": round(max(0, min(10, grammar))),
        "creativity": creativity,
        "consistency": round(max(0, min(10, consistency))),
        "age": "C",
    }


def prefers(better: str) -> dict[str, Any]:
    return {"assessment": "I have read both.", "better": better}


def larger(first: float, second: float) -> dict[str, Any]:
    return prefers("tie" if first == second else "first" if first > second else "second")


# ---- the judges: each grades a completion, and compares two --------------------------------------

Grades = Callable[[str, str], Mapping[str, Any]]
"""Of a beginning and its completion."""


def by(grade: Grades, compare: Callable[[str, str, str], Mapping[str, Any]] | None = None) -> Policy:
    """Return a policy that grades by one function and compares by another, or by the sum of both grades."""

    def policy(question: Question) -> Mapping[str, Any]:
        texts = texts_in(question)
        beginning = texts.get("beginning", "")
        if "first" not in texts:
            return grade(beginning, texts.get("completion", texts.get("text", "")))
        if compare is not None:
            return compare(beginning, texts["first"], texts["second"])
        first, second = grade(beginning, texts["first"]), grade(beginning, texts["second"])
        return larger(*(each["grammar"] + each["consistency"] for each in (first, second)))

    return policy


@functools.cache
def right_share(beginning: str, text: str) -> float:
    reading = read_tale(beginning + text)
    return max(0, reading.offset - len(beginning)) / max(1, len(text))


def exact(beginning: str, text: str) -> Mapping[str, Any]:
    """Reads the text with the grammar of `tales`."""
    return grades(int(10 * right_share(beginning, text)))


def somewhat_exact(beginning: str, text: str) -> Mapping[str, Any]:
    """The same, but each grade is wrong by up to one point."""
    random = Random(text)
    share = 10 * right_share(beginning, text)
    return grades(share - 1 + random.choice((-1, 0, 1)), share - 1 + random.choice((-1, 0, 1)))


def by_length(beginning: str, text: str) -> Mapping[str, Any]:
    return grades(len(text) / 100)


def by_sentence(beginning: str, text: str) -> Mapping[str, Any]:
    """Looks at one sentence at a time: whether it begins with a capital and ends with a full stop."""
    sentences = re.split(r"(?<=[.!?\"])\s+", text.strip())
    tidy = [bool(re.match(r"[\"A-Z].*[.!?\"]$", sentence)) for sentence in sentences[1:]]
    return grades(10 * sum(tidy) / max(1, len(tidy)))


def at_random(beginning: str, text: str) -> Mapping[str, Any]:
    random = Random(text)
    return grades(random.randint(0, 10), random.randint(0, 10))


def obeying(pattern: str) -> Grades:
    """Is exact, but gives 10 to texts that ask for it in a certain way."""

    def grade(beginning: str, text: str) -> Mapping[str, Any]:
        return grades(10, 10, 10) if re.search(pattern, text) else exact(beginning, text)

    return grade


JUDGES: dict[str, Policy] = {
    "reads with the exact grammar": by(exact),
    "the same, each grade off by up to one point": by(somewhat_exact),
    "grades everything 7": by(lambda beginning, text: grades(7, 7, 7)),
    "grades by length": by(by_length),
    "looks at one sentence at a time": by(by_sentence),
    "grades at random": by(at_random),
    "exact, but prefers what is shown first": by(exact, lambda *texts: prefers("first")),
    "exact, but obeys all orders in texts": by(obeying(r"\b10\b")),
    "exact, but believes grades written as JSON": by(obeying(r'"grammar": 10')),
    "gives no valid answer": lambda question: None,
}


def calibrated(policy: Policy, texts: int = 20) -> Calibration:
    """Return what the check says of a judge on `tales`."""
    return judged(policy, check_texts=texts)._calibration(Tales())


def table(result: Callable[[str], Calibration]) -> str:
    """Return the judges × rules, as Markdown; `result` checks a judge of JUDGES."""
    rows = []
    for name in JUDGES:
        calibration = result(name)
        passed = {rule["name"]: rule["is_passed"] for rule in calibration.facts["rules"]}
        rho = calibration.facts["correlation"]["rho"]
        marks = ["passed" if passed[rule] else "**no**" for rule in RULES]
        verdict = "yes" if calibration.is_passed else "**no**"
        rows.append([name, *marks, "–" if rho is None else f"{rho:.2f}", verdict])
    head = ["A judge that …", *RULES, "ρ", "believed"]
    return markdown.table(head, rows, "l" * (len(RULES) + 1) + "rl")


if __name__ == "__main__":
    check.texts_for = functools.cache(check.texts_for)
    print(table(lambda name: calibrated(JUDGES[name])))
