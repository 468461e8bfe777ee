"""Lossless tokenizers: text to tokens and back.

tokenizer = minllm.load_tokenizer("tales_4096")     # or bytes, gpt2, a folder, a run
ids = tokenizer.encode("Once upon a time", bos=True)
assert tokenizer.decode(ids) == "Once upon a time"
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minllm.errors import UserError
from minllm.schema.building import build
from minllm.schema.checking import allowed_packages, check_node

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Tokenizer:
    """The interface of a tokenizer: `decode(encode(text)) == text` for every text that it doesn't refuse.

    A subclass sets the attributes below and defines `encode_texts` and `save`. The first positional argument of its
    constructor is the folder that `save` wrote: `build(cfg.tokenizer, run / "tokenizer")` is the tokenizer that a run
    was trained with, even if the files that its options name have changed.

    vocab_size: the number of tokens; all token ids are below it
    bos_id, eos_id: the tokens that begin and end a document, often the same; no text encodes to them
    pad_id: the token that pads rows; it's never a target, so it may be an ordinary token
    table: the bytes of each token, possibly part of a character; empty for special tokens
    fingerprint: a string that changes whenever the tokens of any text do
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    table: Sequence[bytes]
    fingerprint: str

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Return a text's tokens, optionally preceded by `bos_id` and followed by `eos_id`."""
        return self.encode_batch([text], bos=bos, eos=eos)[0]

    def encode_batch(self, texts: Iterable[str], *, bos: bool = False, eos: bool = False) -> list[list[int]]:
        """Return the tokens of each text.

        Raises:
            UserError: a text has an unpaired surrogate, which can't be encoded in UTF-8.
        """
        texts = [check_encodable(text) for text in texts]
        before, after = [self.bos_id] * bos, [self.eos_id] * eos
        return [before + ids + after if bos or eos else ids for ids in self.encode_texts(texts)]

    def encode_rows(
        self, texts: Iterable[str], length: int | None = None, *, bos: bool = False, eos: bool = False
    ) -> np.ndarray:
        """Return the tokens of texts as an int64 array of shape (number of texts, length).

        Args:
            length: the length of a row: longer texts are truncated, shorter ones are padded with `pad_id`; None: the
                length of the longest.
        """
        encoded = self.encode_batch(texts, bos=bos, eos=eos)
        length = max(map(len, encoded), default=0) if length is None else length
        rows = np.full((len(encoded), length), self.pad_id, np.int64)
        for row, ids in zip(rows, encoded):
            row[: len(ids)] = ids[:length]
        return rows

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that aren't UTF-8 become U+FFFD."""
        return b"".join([self.table[token] for token in ids]).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, for streaming."""
        return self.table[token]

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """The number of bytes of each token, int64; summed over a text's tokens, its size in UTF-8."""
        return np.array([len(token) for token in self.table], np.int64)

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the tokens of each text, without bos and eos."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write to `folder` everything that the constructor needs to recreate this tokenizer."""
        raise NotImplementedError


def check_encodable(text: str) -> str:
    """Return a text that can be encoded in UTF-8. UserError otherwise."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise UserError(
            f"Character {error.start + 1} of {text[:60]!r} is {code}, an unpaired surrogate, which can't be encoded."
            " Leave it out, or enter the text in UTF-8."
        ) from error
    return text


def of_run(run: Path, saved: DictConfig) -> Tokenizer:
    """Return the tokenizer saved in a run; `saved` is the run's configuration."""
    check_node(saved.tokenizer, "tokenizer", allowed_packages(saved))
    return build(saved.tokenizer, run / "tokenizer")


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files to a folder, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        # no lock guards this folder, so two processes need temporary files of their own
        temporary = folder / f"{name}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(content)
            os.replace(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)
