"""Benchmarks of encoding, against other tokenizer libraries, and of making batches.

The other libraries train a vocabulary of the same size on the same text with the same pre-tokenization pattern, and
encode the same documents in turns, with one thread.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig

from minllm.data.batches import open_data
from minllm.data.source import PACKINGS, Source
from minllm.errors import UserError
from minllm.schema.building import build
from minllm.tokenizer.sentencepiece import SentencePiece

TEXT_BYTES = 4_000_000  # of the training documents, at most
TURNS = 5
ROWS, BATCHES = 256, 40

Encode = Callable[[list[str]], Sequence[Any]]


@dataclass(frozen=True)
class Encoding:
    """How fast a tokenizer encodes: the median of its turns, and minllm's speed relative to it."""

    tokenizer: str
    megabytes_per_second: float
    bytes_per_token: float
    minllm_times_as_fast: float


@dataclass(frozen=True)
class Rows:
    """How fast rows are read from the store for a packing, and the shares of padding and lost tokens."""

    packing: str
    rows_per_second: float
    padding: float
    truncated: float
    beheaded: float


def encodings(cfg: DictConfig) -> list[Encoding]:
    """Compare `cfg.tokenizer` with Hugging Face's tokenizers and, if installed, tiktoken.

    Raises:
        UserError: the tokenizer isn't one that minllm trains.
    """
    tokenizer = build(cfg.tokenizer)
    if not isinstance(tokenizer, SentencePiece) or not tokenizer.metadata["pattern"]:
        raise UserError(
            "measure=[data] needs a BPE tokenizer of sentencepiece: type tokenizer=tales_4096, or another that"
            " task=tokenizer has made."
        )
    texts = list(some_documents(build(cfg.data)))
    size = sum(len(text.encode()) for text in texts)
    contestants = {"minllm": tokenizer.encode_batch, **others(tokenizer, texts)}
    tokens = {name: sum(map(len, encode(texts))) for name, encode in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(TURNS):
        for name, encode in contestants.items():
            started = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - started)
    return [
        Encoding(
            name,
            size / statistics.median(seconds[name]) / 1e6,
            size / tokens[name],
            statistics.median(b / a for a, b in zip(seconds["minllm"], seconds[name])),
        )
        for name in contestants
    ]


def made_rows(cfg: DictConfig, seq_lens: Sequence[int]) -> list[Rows]:
    """Measure each packing of the training documents, in batches of `ROWS` rows."""
    source, tokenizer = build(cfg.data), build(cfg.tokenizer)
    found = []
    for seq_len, packing in itertools.product(seq_lens, PACKINGS):
        corpus = open_data(replace(source, seq_len=seq_len, packing=packing), tokenizer)
        batches, shares = corpus.train(ROWS, seed=0), corpus.layout.shares()
        turns = []
        for turn in range(TURNS):
            started = time.perf_counter()
            for step in range(turn * BATCHES, (turn + 1) * BATCHES):
                batches.batch(step)
            turns.append(ROWS * BATCHES / (time.perf_counter() - started))
        figures = (shares.padding, shares.truncated, shares.beheaded)
        found.append(Rows(f"{packing} {seq_len}", statistics.median(turns), *figures))
    return found


def some_documents(source: Source) -> Iterator[str]:
    size = 0
    for text in source.documents("train"):
        yield text
        size += len(text.encode())
        if size > TEXT_BYTES:
            return


def others(tokenizer: SentencePiece, texts: Sequence[str]) -> dict[str, Encode]:
    """Return the encoders of other libraries, with vocabularies of the same size."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread, like the others
    theirs = trained(tokenizer, texts)
    found: dict[str, Encode] = {"tokenizers": theirs.encode_batch_fast}
    if importlib.util.find_spec("tiktoken"):
        found["tiktoken"] = as_tiktoken(theirs, tokenizer.metadata["pattern"])
    return found


def trained(tokenizer: SentencePiece, texts: Sequence[str]) -> Any:
    """Return a byte-level tokenizer of Hugging Face's library, trained on the texts."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    theirs = tokenizers.Tokenizer(models.BPE())
    parted = pre_tokenizers.Split(tokenizers.Regex(tokenizer.metadata["pattern"]), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([parted, letters])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=tokenizer.vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator(texts, trainer)
    return theirs


def as_tiktoken(theirs: Any, pattern: str) -> Encode:
    """Return the same vocabulary in tiktoken, where a token's id is its merge rank."""
    import tiktoken

    from minllm.tokenizer.huggingface import from_letters

    ranks = {from_letters(token): number for token, number in theirs.get_vocab().items()}
    encoding = tiktoken.Encoding("theirs", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda texts: [encoding.encode_ordinary(text) for text in texts]
