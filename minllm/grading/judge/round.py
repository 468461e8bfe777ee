"""One round of questions, each asked once, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tqdm import tqdm

from minllm.errors import UserError
from minllm.grading.judge.cache import Cache
from minllm.grading.judge.fitting import find_answer
from minllm.grading.judge.spent import Spent

if TYPE_CHECKING:
    from minllm.grading.judge import Answer, Question, Reply

GIVE_UP = 20
"""A judge with so many useless replies in a row isn't asked any further."""


class Round:
    """Receives replies, caches the answers, and stops if there are none.

    Args:
        questions: by key.
        advice: what to type if nearly all replies are useless; None: go on, because these questions are known to be
            difficult.

    answers: that fit, by key
    unfit: the reasons why replies don't fit, by key; it may help to ask again
    failed: the reasons why there is no reply
    """

    def __init__(self, questions: Mapping[str, Question], cache: Cache, spent: Spent, advice: str | None):
        self.keys, self.questions = list(questions), questions
        self.cache, self.spent, self.advice = cache, spent, advice
        self.answers: dict[str, Answer] = {}
        self.unfit: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.useless_in_a_row = 0
        self.bar = tqdm(total=len(questions), desc="judge", unit="answer", leave=False, disable=None)

    def receive(self, number: int, reply: Reply) -> None:
        """Take the reply to a question, given by its place. UserError if no reply is of any use."""
        key = self.keys[number]
        self.bar.update()
        self.spent.tokens_in += reply.tokens_in
        self.spent.tokens_out += reply.tokens_out
        answer, reason = None, reply.reason
        if reply.text is not None:
            self.spent.has_replied = True
            answer, misfit = find_answer(reply.text, self.questions[key].schema)
            reason = reply.reason or misfit
        if answer is not None:
            self.cache.write(key, answer)
            self.answers[key] = answer
            self.useless_in_a_row = 0
            return
        (self.failed if reply.has_failed else self.unfit)[key] = reason or "its reply is empty"
        self._stop_if_useless(reason)

    def close(self) -> None:
        self.bar.close()

    def _stop_if_useless(self, reason: str | None) -> None:
        self.useless_in_a_row += 1
        if self.advice is not None and self.useless_in_a_row >= GIVE_UP:
            raise UserError(
                f"The judge was of no use {GIVE_UP} times in a row, the last time because {reason}. It isn't asked"
                f" any further.{self.advice}"
            )
