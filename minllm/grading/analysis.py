"""Three paragraphs about a report by a judge. Every number in them is looked up in the report.

report.json ── without curves and texts ──▶ judge ── numbers not in the report? ──▶ asked again ──▶ marked
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minllm.grading.figures import Figure, Report
from minllm.grading.judge import Answer, Judge, Question
from minllm.grading.prompt import Prompt, read_prompt

PARAGRAPHS = ("result", "evidence", "limits")
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in PARAGRAPHS},
    "required": list(PARAGRAPHS),
    "additionalProperties": False,
}
PLACEHOLDERS = {"Report": ("report",), "Again": ("numbers",)}
NOT_SHOWN = frozenset(
    (
        "curves",
        "readings",
        "commands",
        "folder",
        "samples",
        "shown",
        "beginning",
        "text",
        "passage",
        "remark",
        "remarks",
    )
)
"""Keys of the report that a judge isn't shown, unless they are numbers: long series, and what models have written."""

MARK = " [not in the report]"


@dataclass(frozen=True)
class Analysis:
    """What a judge says about a report.

    judge: its name
    paragraphs: its words; MARK stands behind each number that isn't in the report. Empty if it gave no valid answer
    not_found: these numbers
    note: a sentence about the paragraphs, which belongs above them
    """

    judge: str
    paragraphs: tuple[str, ...]
    not_found: tuple[str, ...]
    note: str


def analyse(judge: Judge, report: Mapping[str, Any]) -> Analysis:
    """Let a judge write about a report.

    Args:
        report: the content of report.json.

    Raises:
        UserError: the judge can't be reached, or its budget is used up.
    """
    shown = without(report, NOT_SHOWN)
    prompt, known = read_prompt("analysis", PLACEHOLDERS), Report(shown)
    question = prompt.question("Report", {"report": json.dumps(shown, ensure_ascii=False)}, SCHEMA)
    answer = judge.ask([question])[0]
    if answer is not None and (wrong := unknown(answer, known)):
        second = judge.ask([again(prompt, question, wrong)])[0]
        answer = second if second is not None and len(unknown(second, known)) <= len(wrong) else answer
    if answer is None:
        return Analysis(judge.name, (), (), f"{judge.name} gave no valid analysis.")
    wrong = unknown(answer, known)
    paragraphs = tuple(marked(answer[name], known.unknown(answer[name])) for name in PARAGRAPHS)
    return Analysis(judge.name, paragraphs, tuple(figure.text for figure in wrong), note(judge.name, wrong))


def without(content: Any, keys: frozenset[str]) -> Any:
    """Return a copy of a report without some keys at any depth, where they aren't numbers."""
    if isinstance(content, Mapping):
        return {
            key: without(value, keys)
            for key, value in content.items()
            if key not in keys or isinstance(value, int | float)
        }
    if isinstance(content, list | tuple):
        return [without(value, keys) for value in content]
    return content


def unknown(answer: Answer, known: Report) -> list[Figure]:
    return [figure for name in PARAGRAPHS for figure in known.unknown(answer[name])]


def again(prompt: Prompt, question: Question, wrong: list[Figure]) -> Question:
    """Return the same question with a message that names the numbers that aren't in the report."""
    numbers = ", ".join(dict.fromkeys(figure.text.strip() for figure in wrong))
    return Question(
        question.instructions,
        f"{question.text}\n\n{prompt.filled('Again', {'numbers': numbers})}",
        question.schema,
    )


def marked(text: str, wrong: list[Figure]) -> str:
    """Return a text in which MARK stands behind each of these numbers."""
    for figure in reversed(wrong):
        text = text[: figure.end] + MARK + text[figure.end :]
    return text


def note(name: str, wrong: list[Figure]) -> str:
    words = f"These are the words of {name}, not of minllm."
    if not wrong:
        return f"{words} Every number in them was found in the report; whether it is used rightly wasn't checked."
    them = "1 number in them wasn't" if len(wrong) == 1 else f"{len(wrong)} numbers in them weren't"
    return f"{words} {them} found in the report, and marked{MARK}: don't rely on them."
