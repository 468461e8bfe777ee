"""Requests to an endpoint through the package `openai`, several at a time, and what can go wrong with them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import openai
from pydantic import BaseModel, ValidationError

from minllm.errors import UserError, first_line, suggest
from minllm.grading.judge import Reply
from minllm.grading.judge.endpoint import NO_KEY, Endpoint

CONNECT_SECONDS = 5.0

FOR_THIS_TEXT = ("context_length_exceeded", "content_filter", "content_policy_violation")
"""Error codes that concern a text and not the settings."""

REPEATED = (408, 409, 429)
"""Statuses, besides 5xx, of requests that the package has repeated."""

SHOWN = 300
"""The longest part of an endpoint's message that is shown, in characters."""


class Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    message: Message
    finish_reason: str | None = None


class Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(BaseModel):
    """The parts of a chat completion that are read; endpoints disagree about the others."""

    choices: list[Choice]
    usage: Usage | None = None


class BudgetSpent(openai.OpenAIError):
    """Carries a `UserError` through the package, which neither repeats nor wraps errors of its own kind."""


async def ask_all(
    endpoint: Endpoint, requests: Sequence[Mapping[str, Any]], receive: Callable[[int, Reply], None]
) -> None:
    """Make all requests, `endpoint.parallel` at a time, and hand over each reply when it arrives."""
    for name in ("httpx", "httpx2"):  # which log each request
        logging.getLogger(name).setLevel(logging.WARNING)

    async def count(_: object) -> None:
        try:
            endpoint.count_requests(1)
        except UserError as error:
            raise BudgetSpent from error

    timeout = openai.Timeout(endpoint.timeout_seconds, connect=CONNECT_SECONDS)
    http = openai.DefaultAsyncHttpxClient(timeout=timeout, event_hooks={"request": [count]})
    async with openai.AsyncOpenAI(
        base_url=endpoint.url,
        api_key=endpoint.secret,
        timeout=timeout,
        max_retries=endpoint.retries,
        http_client=http,
    ) as client:
        numbered = iter(enumerate(requests))  # shared by all workers
        refusals: list[BudgetSpent] = []

        async def work() -> None:
            for number, request in numbered:
                try:
                    reply = await reply_to(endpoint, client, request)
                except BudgetSpent as error:
                    refusals.append(error)  # the others may still be waiting for replies that are paid for
                    return
                receive(number, reply)

        workers = [asyncio.create_task(work()) for _ in range(min(endpoint.parallel, len(requests)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    if refusals:
        raise UserError(str(refusals[0].__cause__)) from refusals[0]


async def reply_to(endpoint: Endpoint, client: openai.AsyncOpenAI, request: Mapping[str, Any]) -> Reply:
    """Make a request, and return the reply or why there is none. UserError if the next one would fare no better."""
    try:
        response = await client.chat.completions.with_raw_response.create(**request)
    except openai.APIStatusError as error:
        return await refused(endpoint, client, error)
    except openai.APIConnectionError as error:
        return unreachable(endpoint, error)
    return read(endpoint, response.text)


def read(endpoint: Endpoint, body: str) -> Reply:
    """Return what a response says."""
    try:
        completion = Completion.model_validate_json(body)
    except ValidationError:
        reason = f"{endpoint.url} sent something other than a chat completion"
        return Reply(None, masked(f"{reason}: {body}", endpoint), has_failed=True)
    usage = completion.usage or Usage()
    tokens = {"tokens_in": usage.prompt_tokens or 0, "tokens_out": usage.completion_tokens or 0}
    if not completion.choices:
        return Reply(None, "its reply is empty", **tokens)
    choice = completion.choices[0]
    if choice.message.refusal or choice.finish_reason == "content_filter":
        said = masked(choice.message.refusal or "content filter", endpoint)
        return Reply(None, f"it refuses to answer ({said})", **tokens)
    if choice.finish_reason == "length":
        reason = f"its reply is longer than judge.max_tokens={endpoint.max_tokens} allows"
        return Reply(choice.message.content, reason, **tokens)
    return Reply(choice.message.content, None if choice.message.content else "its reply is empty", **tokens)


# ---- errors --------------------------------------------------------------------------------------


def unreachable(endpoint: Endpoint, error: openai.APIConnectionError) -> Reply:
    """Return a failed reply, or raise `UserError` if the endpoint has never answered."""
    if isinstance(error, openai.APITimeoutError):
        reason = f"{endpoint.url} doesn't reply within judge.timeout_seconds={endpoint.timeout_seconds:g}"
    else:
        reason = masked(f"{endpoint.url} can't be reached ({innermost(error)})", endpoint)
    if endpoint.spent.has_replied:
        return Reply(None, reason, has_failed=True)
    raise UserError(
        f"{reason}. Start the server, or type another judge.base_url=<url>; one that is slow"
        " needs a larger judge.timeout_seconds or a smaller judge.parallel."
    )


async def refused(endpoint: Endpoint, client: openai.AsyncOpenAI, error: openai.APIStatusError) -> Reply:
    """Return a failed reply if the error may concern this question only; else raise `UserError`."""
    status, message = error.status_code, masked(message_of(error), endpoint)
    if status in (401, 403):  # the message may show parts of the key
        raise UserError(key_sentence(endpoint, status))
    if status == 404:
        raise UserError(await not_found(endpoint, client))
    if status == 429:
        raise UserError(
            f"{endpoint.url} accepts no more requests for now: {message}. The answers so far are in"
            f" {endpoint.cache}: repeat the command later to continue, with a smaller judge.parallel or more"
            " judge.retries if there were too many at a time."
        )
    may_be_the_text = status in (400, 413, 422) or status in REPEATED or status >= 500
    if (may_be_the_text and endpoint.spent.has_replied) or error.code in FOR_THIS_TEXT:
        return Reply(None, f"{endpoint.url} replies with status {status}: {message}", has_failed=True)
    raise UserError(
        f"{endpoint.url} replies with status {status}: {message}.{remedy(endpoint, status, message)}"
    )


def key_sentence(endpoint: Endpoint, status: int) -> str:
    if endpoint.secret == NO_KEY:
        return f"{endpoint.url} needs a key (status {status}). Put it in the environment variable {endpoint.key}."
    return (
        f"{endpoint.url} rejects the key in the environment variable {endpoint.key}, or it doesn't allow the model"
        f" (status {status}). Put another key there, or name another variable: judge.key=<name>."
    )


async def not_found(endpoint: Endpoint, client: openai.AsyncOpenAI) -> str:
    """Return a sentence about a wrong model or a wrong path, by asking for the models that there are."""
    try:
        models = [model.id async for model in client.with_options(max_retries=0).models.list()]
    except (openai.OpenAIError, AttributeError, TypeError):  # not every endpoint has a list, or a proper one
        models = []
    if not models:
        return (
            f"{endpoint.url} has no chat API there, or no model '{endpoint.model}' (status 404). Most base URLs end in"
            " /v1: check judge.base_url and judge.model."
        )
    near = suggest(str(endpoint.model), [masked(model, endpoint) for model in models])
    return f"{endpoint.url} has no model judge.model='{endpoint.model}'.{near}"


def remedy(endpoint: Endpoint, status: int, message: str) -> str:
    """Return what to type if an endpoint refuses a part of a request, by what its message mentions."""
    if status >= 500 or status in REPEATED:
        return " Test the endpoint, or repeat the command later; the answers so far are kept."
    if status not in (400, 422):
        return " Check judge.base_url and judge.model."
    changes = {
        "seed": "judge.seed=null",
        "temperature": "judge.temperature=null",
        "max_tokens|max_completion_tokens": "judge.max_tokens=null",
        "system": "judge.system=false",
    }
    fitting = [change for pattern, change in changes.items() if re.search(pattern, message, re.IGNORECASE)]
    others = {"json_schema": "json_object or judge.structured=none", "json_object": "none"}
    if not fitting and endpoint.structured in others:
        return (
            f" If it doesn't support structured output of this kind, type judge.structured="
            f"{others[endpoint.structured]}."
        )
    return f" Type {' or '.join(fitting)}." if fitting else ""


def message_of(error: openai.APIStatusError) -> str:
    """Return the endpoint's own words."""
    body = error.body if isinstance(error.body, dict) else {}
    message = body.get("message") or body.get("detail") or error.message
    return str(message)


def innermost(error: BaseException) -> str:
    """Return the message of the first cause."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return first_line(error)


def masked(text: str, endpoint: Endpoint) -> str:
    """Return the beginning of a text of the endpoint on one line, in which keys are masked."""
    if endpoint.secret != NO_KEY:
        text = text.replace(endpoint.secret, "***")
    text = re.sub(r"\bsk-[\w*-]+|(?<=Bearer )\S+", "***", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".")[:SHOWN]
