"""How much of what a model writes is its own: which samples are alike, and what stands in the training set.

tokens of the training documents ── chunks of about 64 MB ──▶ a suffix array of each ──▶ the longest copied passages

Both graders call `copies`. It makes sense for every corpus.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minllm.data.source import Source
from minllm.data.store import open_store, place_of
from minllm.errors import UserError
from minllm.grading.grades import Measure, Values
from minllm.grading.samples import Sample
from minllm.tokenizer import Tokenizer

DISTINCT = Measure("distinct", "distinct texts", "share", "neither", 1.0)
COPIED = Measure("copied", "texts copied from the training set", "share", "lower", 1.0)
LONGEST_COPY = Measure("longest_copy", "longest copied passage", "characters", "neither", None)
COPYING_MEASURES = (DISTINCT, COPIED, LONGEST_COPY)

LARGEST = 500_000_000
"""Bytes of the largest training set that is searched, which takes about two minutes."""
CHUNK = 64_000_000
"""Bytes of text that are indexed at once, which takes five times as much memory."""
DECODED = 1 << 20  # tokens decoded at once, to save memory
BORDER = b"\xff"
"""Separates documents; no text in UTF-8 has this byte, so no passage runs across a border."""


@dataclass(frozen=True)
class Copies:
    """What `copies` measured.

    values: of `COPYING_MEASURES`; each has one entry per sample
    facts: `{"copying": {"longest": …, "passage": …, "sample": …}}`: the characters of the longest copied passage, the
        passage, and the index of its sample; empty if the training set wasn't searched
    notes: why the training set wasn't searched
    """

    values: Mapping[Measure, Values]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def copies(samples: Sequence[Sample], source: Source, tokenizer: Tokenizer) -> Copies:
    """Return which samples are distinct, and how much of them stands in the training set word for word.

    distinct: 1 if no other sample has the same text, with its beginning
    copied: 1 if the whole text, with its beginning, stands in one training document
    longest_copy: the characters of the longest passage that the model wrote and that stands in one training document;
        its beginning, which the model didn't write, doesn't count

    A training set that is too large, can't be read or would have to be streamed is not searched: no sample has a value
    of the last two measures then, and a note says why.

    Args:
        samples: of one run.
        source: the corpus that the run was trained on. Its token store is built if there is none.
        tokenizer: that of the run, by which the store is found.
    """
    try:
        chunks = chunks_of(source, tokenizer)
    except UserError as error:
        return Copies(
            {DISTINCT: distinct(samples)} | dict.fromkeys((COPIED, LONGEST_COPY), no_values(samples)),
            notes=(f"The samples weren't searched for passages of the training set. {error}",),
        )
    longest = [Passage(0, 0)] * len(samples)
    are_copied = [False] * len(samples)
    for chunk in chunks:
        index = index_of(chunk)
        for number, sample in enumerate(samples):
            longest[number] = index.longest(sample.text, longest[number])
            are_copied[number] |= index.has(sample.whole.encode())
    return Copies(
        {
            DISTINCT: distinct(samples),
            COPIED: Values(
                [float(is_copied) for is_copied in are_copied], [float(bool(s.whole)) for s in samples]
            ),
            LONGEST_COPY: Values([float(p.length) for p in longest], [float(bool(s.text)) for s in samples]),
        },
        facts={"copying": longest_of_all(samples, longest)} if samples else {},
    )


def distinct(samples: Sequence[Sample]) -> Values:
    """Return for each sample 1 if no other one has the same text, else 0."""
    times = Counter(sample.whole for sample in samples)
    return Values([float(times[sample.whole] == 1) for sample in samples], [1.0] * len(samples))


def no_values(samples: Sequence[Sample]) -> Values:
    return Values([0.0] * len(samples), [0.0] * len(samples))


@dataclass(frozen=True)
class Passage:
    """A passage of a text, in characters."""

    start: int
    length: int


def longest_of_all(samples: Sequence[Sample], longest: Sequence[Passage]) -> dict[str, Any]:
    number = max(range(len(samples)), key=lambda number: longest[number].length)
    passage = longest[number]
    text = samples[number].text[passage.start : passage.start + passage.length]
    return {"longest": passage.length, "passage": text, "sample": number}


# ---- the training set ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Some documents of a token store; equal if they have the same text.

    folder: of the store
    first, last: their tokens are those in [first, last)
    tokens: those of the whole store
    table: the bytes of each token; of the one that begins a document, BORDER
    """

    folder: Path
    first: int
    last: int
    tokens: np.ndarray = field(compare=False, repr=False)
    table: Sequence[bytes] = field(compare=False, repr=False)

    def text(self) -> bytes:
        """Return the documents in UTF-8, each preceded by BORDER."""
        blocks = (
            self.tokens[at : min(at + DECODED, self.last)].tolist()
            for at in range(self.first, self.last, DECODED)
        )
        return b"".join(b"".join([self.table[token] for token in block]) for block in blocks)


def chunks_of(source: Source, tokenizer: Tokenizer) -> list[Chunk]:
    """Return the training documents, in chunks of about CHUNK bytes or of one document.

    Raises:
        UserError: they can't be read, are too many, or would have to be streamed.
    """
    if getattr(source, "streaming", False) and not place_of(source, tokenizer).is_dir():
        raise UserError("They are read over the network, and their tokens are no longer in data.cache.")
    store = open_store(source, tokenizer)
    documents = store.split("train")
    tokens, starts = documents.tokens, documents.starts
    documents.check(0, len(tokens))
    blocks = (tokens[at : at + DECODED] for at in range(0, len(tokens), DECODED))
    size = sum(int(tokenizer.byte_lengths[block].sum()) for block in blocks)
    if size > LARGEST:
        raise UserError(
            f"It has {size / 1e6:,.0f} MB of text; at most {LARGEST / 1e6:,.0f} MB can be searched."
        )
    table = list(tokenizer.table)
    table[tokenizer.bos_id] = BORDER
    per_chunk = max(1, CHUNK * len(tokens) // max(size, 1))
    borders = [int(starts[0])]
    while borders[-1] < starts[-1]:
        reached = int(np.searchsorted(starts, borders[-1] + per_chunk, side="right")) - 1
        following = int(np.searchsorted(starts, borders[-1], side="right"))
        borders.append(int(starts[max(reached, following)]))
    return [Chunk(store.folder, first, last, tokens, table) for first, last in zip(borders, borders[1:])]


@functools.lru_cache(maxsize=1)  # runs that are compared share their training set
def index_of(chunk: Chunk) -> Index:
    return Index(chunk.text())


class Index:
    """A text whose passages are found quickly, by its suffix array."""

    def __init__(self, text: bytes) -> None:
        from pydivsufsort import divsufsort

        self.text = text
        self.suffixes = divsufsort(text)

    def has(self, passage: bytes) -> bool:
        """Whether a passage, which isn't empty, stands in the text."""
        from pydivsufsort import sa_search

        return bool(passage) and sa_search(self.text, self.suffixes, passage)[0] > 0

    def longest(self, sample: str, known: Passage) -> Passage:
        """Return the longest passage of a sample that stands in the text, or the known one if none is longer."""
        ends = [0, *np.cumsum([len(character.encode()) for character in sample]).tolist()]
        encoded = sample.encode()
        best, start = known, 0
        while start + best.length < len(sample):
            # if the second half stands nowhere, neither does any passage that contains it
            half, end = start + best.length // 2, ends[start + best.length + 1]
            if not self.has(encoded[ends[half] : end]):
                start = half + 1
            elif half > start and not self.has(encoded[ends[start] : end]):
                start += 1
            else:
                best = Passage(start, best.length + 1)
        return best
