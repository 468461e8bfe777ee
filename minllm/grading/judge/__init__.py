"""Judges: language models that answer questions about texts.

questions ── cached? ── within the budget? ──▶ `answer`, several at a time ──▶ answers that fit their schema
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """What a judge is asked.

    instructions: how to answer; the system message
    text: what the question is about; the user message, in which foreign texts are delimited
    schema: the JSON schema that the answer must fit; its properties are answered in their order
    """

    instructions: str
    text: str
    schema: Mapping[str, Any]


Answer = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The base class of `judge:`."""

    check: bool = False

    def ask(self, questions: Sequence[Question]) -> list[Answer | None]:
        """Return the answer to each question; None where the judge gave none that fits the schema.

        Raises:
            UserError: the judge can't be reached, or the budget doesn't allow all questions.
        """
        raise NotImplementedError
