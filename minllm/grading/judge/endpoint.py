"""`judge=openai`: any endpoint that speaks the OpenAI chat API, such as vLLM, llama.cpp, Ollama, or OpenAI itself.

This module's annotations are real objects, not strings, for the reason that `minllm.grading.judge` gives.
"""

import asyncio
import os
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from minllm.errors import UserError
from minllm.grading.judge import Judge, Question, Reply
from minllm.grading.judge.fitting import require
from minllm.schema.options import Count, Name, Natural, NonNegative, Positive

OPENAI = "api.openai.com"
NO_KEY = "none"
"""Sent to endpoints that need no key, because the API demands one."""

OTHER_TEMPERATURE = 0.7
"""At which a question is asked again if the temperature is 0: the same reply would come back otherwise."""


@dataclass(frozen=True, kw_only=True)
class Endpoint(Judge):
    """A model behind an endpoint.

    Refused and failed requests (408, 409, 429, 5xx, no connection, no reply in time) are repeated after a random and
    growing pause, or after the pause that the endpoint asks for, up to two minutes.

    base_url: of the endpoint, such as http://localhost:8000/v1
    model: its name at the endpoint
    key: the name of the environment variable that holds the key; local endpoints need none
    parallel: how many requests are made at the same time
    timeout_seconds: the longest wait for a reply
    retries: how often a failed request is repeated
    structured: how replies are made to fit the schema: `json_schema` lets the endpoint enforce it, `json_object` lets
        it enforce JSON and puts the schema into the instructions, `none` only puts it there
    temperature: null: the endpoint's own
    seed: null: none is sent
    price_in: of a million tokens of questions; null: unknown
    price_out: of a million tokens of replies
    """

    base_url: Name | None = None
    model: Name | None = None
    key: str = "OPENAI_API_KEY"
    parallel: Count = 8
    timeout_seconds: Positive = 60.0
    retries: Natural = 5
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    temperature: NonNegative | None = 0.0
    seed: Natural | None = 0
    price_in: NonNegative | None = None
    price_out: NonNegative | None = None

    advice: ClassVar[str] = (
        " Test the endpoint, choose another judge.structured (json_schema, json_object or none) or judge.model, or"
        " raise judge.max_tokens or judge.timeout_seconds."
    )

    def __post_init__(self) -> None:
        # names are upper case by custom, keys aren't; it may be a key, so it isn't shown
        if re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key) is None:
            raise UserError(
                "judge.key must be the name of an environment variable in upper case, such as OPENAI_API_KEY, that"
                " holds the key, and not the key itself, which would be written to files."
            )
        if self.base_url is not None:
            check_url(self.base_url)

    @property
    def name(self) -> str:
        return str(self.model)

    @property
    def url(self) -> str:
        return str(self.base_url).rstrip("/")

    @property
    def is_openai(self) -> bool:
        return urlsplit(self.url).hostname == OPENAI

    @property
    def secret(self) -> str:
        """The key, or what is sent in its place; never to be shown."""
        return os.environ.get(self.key, "").strip() or NO_KEY

    def identity(self) -> Mapping[str, Any]:
        names = ("model", "structured", "temperature", "seed", "max_tokens", "system")
        return {"base_url": self.url} | {name: getattr(self, name) for name in names}

    def check_ready(self) -> None:
        require("openai")
        require("jsonschema")
        if self.base_url is None:
            raise UserError(
                "judge=openai needs an endpoint: type judge.base_url=http://localhost:8000/v1 for a local server, or"
                f" judge.base_url=https://{OPENAI}/v1 with the key in the environment variable {self.key}."
            )
        if self.model is None:
            raise UserError(
                "judge=openai needs the name of a model at the endpoint: type judge.model=<name>."
            )

    def reply(
        self, questions: Sequence[Question], attempt: int, receive: Callable[[int, Reply], None]
    ) -> None:
        if self.is_openai and self.secret == NO_KEY:
            raise UserError(f"{OPENAI} needs a key. Put it in the environment variable {self.key}.")
        if not re.fullmatch(r"[!-~]+", self.secret):  # a header can't hold it, and the error would show it
            raise UserError(f"The environment variable {self.key} doesn't hold a key, but other text.")
        from minllm.grading.judge.chat import ask_all

        run(ask_all(self, [self.request(question, attempt) for question in questions], receive))

    def request(self, question: Question, attempt: int) -> dict[str, Any]:
        """Return a request's JSON."""
        temperature, seed = self.temperature, self.seed
        if attempt:
            temperature = OTHER_TEMPERATURE if temperature == 0 else temperature
            seed = None if seed is None else seed + attempt
        limit = (
            "max_completion_tokens" if self.is_openai else "max_tokens"
        )  # OpenAI deprecates the other name
        options = {"temperature": temperature, "seed": seed, limit: self.max_tokens}
        options |= {"response_format": response_format(self.structured, question.schema)}
        return {
            "model": self.model,
            "messages": self.messages(question, with_schema=self.structured != "json_schema"),
        } | {name: value for name, value in options.items() if value is not None}

    def cost(self, tokens_in: int, tokens_out: int) -> str:
        if self.price_in is None or self.price_out is None:
            return ", cost unknown without judge.price_in and judge.price_out"
        return f", cost {(tokens_in * self.price_in + tokens_out * self.price_out) / 1e6:,.4f}"


def check_url(url: str) -> None:
    """Raise `UserError` unless a base URL is one, and can be written to files."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that isn't a number, or a wrong IPv6 address
        is_url = False
    if not is_url:
        raise UserError(f"judge.base_url={url} is not a URL. Type judge.base_url=http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query:
        raise UserError(
            f"judge.base_url must be without user, password and parameters, because it is written to files: type"
            f" judge.base_url={parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} and put the key in the"
            " environment variable that judge.key names."
        )


def response_format(structured: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    if structured == "none":
        return None
    if structured == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine, also in a notebook, whose thread runs an event loop already."""
    if not is_in_event_loop():
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


def is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
