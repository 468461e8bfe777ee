"""Finding the answer in a judge's reply, and validating it against the question's JSON schema."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from minllm.errors import UserError, first_line

SHOWN = 120
"""The longest reason, in characters."""


def find_answer(text: str, schema: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Return the last JSON object in a text that fits the schema, or None and the reason.

    Models without structured output write around it: reasoning before, a code fence, an explanation after.
    """
    reason = "its reply has no JSON object"
    fitting = None
    for candidate in objects(text):
        why = misfit(candidate, schema)
        if why is None:
            fitting = candidate
        else:
            reason = why
    return fitting, reason


def misfit(answer: Any, schema: Mapping[str, Any]) -> str | None:
    """Return why an answer doesn't fit a schema, or None if it fits."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    if not isinstance(answer, dict):
        return "its reply is not a JSON object"
    error = best_match(Draft202012Validator(schema).iter_errors(answer))
    if error is None:
        return None
    place = ".".join(map(str, error.absolute_path))
    return f"its reply doesn't fit{f' at {place}' if place else ''}: {first_line(error.message)[:SHOWN]}"


def require_jsonschema() -> None:
    require("jsonschema")


def require(package: str) -> None:
    """Raise `UserError` if a package of the extra `judge` isn't installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"Asking a judge needs {package}, which isn't installed. Type: pip install 'minllm[judge]'"
        )


def objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the outermost JSON objects in a text."""
    decoder = json.JSONDecoder(parse_constant=refuse_constant, parse_float=finite_float)
    start = text.find("{")
    while start >= 0:
        end = start + 1
        try:
            value, end = decoder.raw_decode(text, start)
            yield without_surrogates(value)
        except (ValueError, RecursionError):
            pass
        start = text.find("{", end)


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def finite_float(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits} is too large")
    return number


def without_surrogates(value: dict[str, Any]) -> dict[str, Any]:
    """Replace halves of surrogate pairs, which JSON can escape but no file can hold, by question marks."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
