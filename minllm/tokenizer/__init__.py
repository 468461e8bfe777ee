"""Text to numbers and back, without losing a byte.

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
    """What the rest of minllm needs of a tokenizer: `decode(encode(text)) == text` for every text.

    A subclass sets the attributes below, and defines `encode_texts` and `save`. Its constructor takes, by position, the
    folder that `save` wrote: `build(cfg.tokenizer, run / "tokenizer")` is the tokenizer a run was trained with,
    whatever became of what its options name.

    vocab_size: how many tokens there are, all of them below this number
    bos_id, eos_id: the tokens that begin and end a document, often the same one; no text encodes to them
    pad_id: what fills up a row; no loss counts it, so it may be one that has a meaning elsewhere
    table: the bytes of each token, which may be a part of a character; none for those above
    fingerprint: changes whenever any text's tokens do
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    table: Sequence[bytes]
    fingerprint: str

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Return a text's tokens, with the one that begins a document before them, or the one that ends it after."""
        return self.encode_batch([text], bos=bos, eos=eos)[0]

    def encode_batch(self, texts: Iterable[str], *, bos: bool = False, eos: bool = False) -> list[list[int]]:
        """Return the tokens of each text.

        Raises:
            UserError: a text has half of a surrogate pair, which no bytes stand for.
        """
        texts = [whole(text) for text in texts]
        before, after = [self.bos_id] * bos, [self.eos_id] * eos
        return [before + ids + after if bos or eos else ids for ids in self.encode_texts(texts)]

    def encode_rows(
        self, texts: Iterable[str], length: int | None = None, *, bos: bool = False, eos: bool = False
    ) -> np.ndarray:
        """Return the tokens of texts as rows, int64, (number of texts, length).

        Args:
            length: how long a row is: what a text has more is cut off, and what it lacks is filled up with `pad_id`;
                None: as long as the longest.
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
        """Return the bytes one token stands for: streams join them."""
        return self.table[token]

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """How many bytes each token stands for, int64: over a text's tokens they sum up to its bytes in UTF-8."""
        return np.array([len(token) for token in self.table], np.int64)

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the tokens of each text, and nothing besides."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write into `folder` all that the constructor needs to make this tokenizer again."""
        raise NotImplementedError


def whole(text: str) -> str:
    """Return a text that can be spelled in bytes. UserError for any other."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise UserError(
            f"Character {error.start + 1} of {text[:60]!r} is {code}, half of a surrogate pair, which can't be encoded."
            " Leave it out, or type the text in UTF-8."
        ) from error
    return text


def of_run(run: Path, saved: DictConfig) -> Tokenizer:
    """Return the tokenizer that a run has kept; `saved` is how the run was configured."""
    check_node(saved.tokenizer, "tokenizer", allowed_packages(saved))
    return build(saved.tokenizer, run / "tokenizer")


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder by name, each beside its place and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        beside = folder / f"{name}.{os.getpid()}.tmp"
        try:
            beside.write_bytes(content)
            os.replace(beside, folder / name)
        finally:
            beside.unlink(missing_ok=True)
