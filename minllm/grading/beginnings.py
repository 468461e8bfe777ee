"""Held-out texts, cut in mid-sentence: beginnings for a model to continue, and how they really go on."""

from __future__ import annotations

import itertools

from minllm.data.source import Source
from minllm.data.tales import VALIDATION_SEED, Tales, story

RESERVED = VALIDATION_SEED * 2  # seeds that no split of tales has


def held_out(source: Source, number: int) -> list[tuple[str, str]]:
    """Return up to `number` texts as (beginning, rest), cut at a space after about 30 % of each."""
    if isinstance(source, Tales):
        texts = (story(RESERVED + index).text for index in range(number))
    else:
        texts = itertools.islice(source.documents("val"), number)
    return [cut for text in texts if (cut := cut_in_two(text)) is not None]


def cut_in_two(text: str) -> tuple[str, str] | None:
    at = text.find(" ", int(0.3 * len(text)))
    while at > 0 and text[at - 1] in ".!?\"'”":
        at = text.find(" ", at + 1)
    return (text[:at], text[at:]) if at > 0 else None
