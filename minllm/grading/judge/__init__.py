"""Judges: language models that answer questions about texts.

    questions ── cached? ── within the budget? ──▶ `reply`, several at a time ──▶ answers that fit their schema
                                                       ▲                              │
                                                       └──── asked again, or missing ─┘

This module's annotations are real objects, not strings: a judge in another module inherits the options, and
`minllm.config.compose.validate` reads their types there.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from minllm.errors import UserError, printable
from minllm.grading.judge.cache import Cache
from minllm.grading.judge.round import Round
from minllm.grading.judge.spent import Spent
from minllm.schema.kinds import SECTION_KINDS
from minllm.schema.options import Count, Place


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


@dataclass(frozen=True)
class Reply:
    """What came of asking a question once.

    text: the reply, in which the answer is looked for; None if there is none
    reason: why there is none, or why it ends early; None if it is whole
    has_failed: the endpoint failed, not the judge: the question isn't asked again in this command
    tokens_in: of the question, as counted by the judge; 0 if unknown
    tokens_out: of the reply
    """

    text: str | None
    reason: str | None = None
    has_failed: bool = False
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Answers questions. A subclass adds `name`, `identity` and `reply`, and its own options as fields.

    check: test the judge on texts whose quality is known before it is believed
    system: give the instructions as a system message; false: before the text, for models without system messages
    max_tokens: the longest reply; null: the judge's own limit
    attempts: how often a question is asked until a reply fits; the answer is missing after that
    max_requests: how many requests one command may make, repeated ones included
    cache: the folder of the answers
    retry_missing: ask again for cached missing answers
    """

    check: bool = False
    system: bool = True
    max_tokens: Count | None = 1000
    attempts: Count = 3
    max_requests: Count = 2000
    cache: Place = ".cache/judge"
    retry_missing: bool = False

    spent: Spent = field(default_factory=Spent, init=False, repr=False, compare=False)
    """What was spent since the judge was built."""

    advice: ClassVar[str] = ""
    """What to type if no reply fits."""

    def ask(self, questions: Sequence[Question]) -> list[Answer | None]:
        """Return the answer to each question; None where it is missing, because no reply fitted the schema.

        Equal questions are asked once. Each answer is cached when it arrives, so that an interrupted command asks
        only for the others when it's repeated. Missing answers are cached too, unless the endpoint failed.

        Raises:
            UserError: the judge can't be reached, no reply fits, or the budget doesn't allow all questions.
        """
        self.check_ready()
        if not questions:
            return []
        cache = Cache(Path(self.cache), self.identity())
        keys = [cache.key(question) for question in questions]
        distinct = dict(zip(keys, questions))
        answers = cache.read(distinct, 0 if self.retry_missing else self.attempts)
        unanswered = {key: question for key, question in distinct.items() if key not in answers}
        self.spent.has_replied |= any(answer is not None for answer in answers.values())
        self.announce(answers, unanswered)
        if unanswered:
            cache.prepare()
            try:
                self._ask(unanswered, cache, answers)
            finally:
                print(f"Judge: {self.bill()}. The answers are kept in {self.cache}.", flush=True)
        return [answers.get(key) for key in keys]

    # ---- for subclasses

    @property
    def name(self) -> str:
        """The judge's name in messages and reports."""
        raise NotImplementedError

    def identity(self) -> Mapping[str, Any]:
        """Return everything besides the question that an answer depends on, as JSON without secrets."""
        raise NotImplementedError

    def check_ready(self) -> None:
        """Raise `UserError` if an option or a package is missing; nothing is asked."""

    def reply(
        self, questions: Sequence[Question], attempt: int, receive: Callable[[int, Reply], None]
    ) -> None:
        """Ask each question once, and call `receive(index, reply)` when a reply arrives.

        Args:
            attempt: how often these questions were asked before; the replies must differ from those.

        Raises:
            UserError: asking more questions is pointless.
        """
        raise NotImplementedError

    def messages(self, question: Question, *, with_schema: bool) -> list[dict[str, str]]:
        """Return a question as a chat; `with_schema` if nothing else tells the judge the form of the answer."""
        instructions, text = (
            part.encode("utf-8", "replace").decode() for part in (question.instructions, question.text)
        )  # without halves of surrogate pairs
        if with_schema:
            schema = json.dumps(question.schema, ensure_ascii=False)
            instructions += (
                f"\n\nAnswer with one JSON object that fits this JSON schema, and nothing else:\n{schema}"
            )
        if self.system:
            return [
                {"role": "system", "content": instructions},
                {"role": "user", "content": text},
            ]
        return [{"role": "user", "content": f"{instructions}\n\n{text}"}]

    def cost(self, tokens_in: int, tokens_out: int) -> str:
        """Return the cost of tokens, as a phrase; empty if they are free."""
        return ""

    # ---- the budget, and what was spent

    def announce(self, cached: Mapping[str, Answer | None], unanswered: Mapping[str, Question]) -> None:
        """Print how much will be asked. UserError if the budget doesn't allow it."""
        missing = sum(answer is None for answer in cached.values())
        again = f", {missing:,} of them as missing (judge.retry_missing=true asks again)" if missing else ""
        if not unanswered:
            print(f"Judge {self.name}: all {len(cached):,} answers are in {self.cache}{again}.", flush=True)
            return
        tokens_in = sum(tokens_of(question) for question in unanswered.values())
        tokens_out = len(unanswered) * (self.max_tokens or 0)
        at_most = f" and at most {tokens_out:,} out" if tokens_out else ""
        print(
            f"Judge {self.name}: {len(cached) + len(unanswered):,} questions, {len(cached):,} answers in"
            f" {self.cache}{again}. {len(unanswered):,} requests or more, with an estimated {tokens_in:,} tokens"
            f" in{at_most}{self.cost(tokens_in, tokens_out)}.",
            flush=True,
        )
        left = self.max_requests - self.spent.requests
        if len(unanswered) > left:
            enough = self.spent.requests + len(unanswered) + -(-len(unanswered) // 4)
            raise UserError(
                f"{len(unanswered):,} questions to the judge are more than the {max(left, 0):,} requests that"
                f" judge.max_requests={self.max_requests} leaves; none of them was asked. To ask them, some of them"
                f" repeatedly, type judge.max_requests={enough}, or grade fewer samples."
            )

    def count_requests(self, number: int) -> None:
        """Count requests that are about to be made. UserError if the budget doesn't allow them."""
        if self.spent.requests + number > self.max_requests:
            raise UserError(
                f"judge.max_requests={self.max_requests} is used up, and answers are still missing. Those that have"
                f" arrived are in {self.cache}: to continue, repeat the command, or raise judge.max_requests."
            )
        self.spent.requests += number

    def bill(self) -> str:
        """Return what was spent so far, as a phrase."""
        spent = self.spent
        return (
            f"{spent.requests:,} requests so far, {spent.tokens_in:,} tokens in and {spent.tokens_out:,} out as counted"
            f" by the judge{self.cost(spent.tokens_in, spent.tokens_out)}"
        )

    def _ask(
        self, unanswered: Mapping[str, Question], cache: Cache, answers: dict[str, Answer | None]
    ) -> None:
        """Add the answers to `answers`, None for missing ones."""
        left, reasons = dict(unanswered), {}
        for attempt in range(self.attempts):
            advice = self.advice if attempt == 0 else None
            with contextlib.closing(Round(left, cache, self.spent, advice)) as asked:
                self.reply(list(left.values()), attempt, asked.receive)
            answers |= asked.answers
            reasons |= asked.failed | asked.unfit
            left = {key: left[key] for key in asked.unfit}
            if not left:
                break
        for key in left:
            cache.write_missing(key, reasons[key], self.attempts)
        missing = [key for key in unanswered if key not in answers]
        if missing:
            print(
                f"Judge: {len(missing):,} of {len(unanswered):,} answers are missing, the last one because"
                f" {printable(reasons[missing[-1]])}.",
                flush=True,
            )


JudgeOption = Annotated[Callable[[], Judge], SECTION_KINDS["judge"]]
"""An option that is a `judge:` section."""


def tokens_of(question: Question) -> int:
    """Estimate the number of tokens of a question: one for four characters."""
    return (len(question.instructions) + len(question.text) + len(json.dumps(question.schema))) // 4
