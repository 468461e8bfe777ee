"""Text to numbers and back, without losing a byte."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol


class Tokenizer(Protocol):
    """What the rest of minllm needs of a tokenizer: `decode(encode(text)) == text` for every text.

    A tokenizer's constructor takes, by position, the folder that `save` wrote: `build(cfg.tokenizer, run /
    "tokenizer")` is the tokenizer a run was trained with, whatever became of the folder named in its options.

    vocab_size: how many tokens there are, all of them below this number
    eot: the token that ends a document, and stands before its first token; no text encodes to it
    fingerprint: changes whenever any text's tokens do
    """

    vocab_size: int
    eot: int
    fingerprint: str

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; `eot` adds nothing, and bytes that aren't UTF-8 become U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes one token stands for, which may be a part of a character: streams join them."""
        ...

    def save(self, folder: Path) -> None:
        """Write into `folder` all that the constructor needs to make this tokenizer again."""
        ...


def join_bytes(table: Sequence[bytes], ids: Iterable[int]) -> str:
    """Return the text of tokens whose bytes are in `table`."""
    return b"".join([table[token] for token in ids]).decode("utf-8", errors="replace")


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder by name, each beside its place and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        beside = folder / f"{name}.{os.getpid()}.tmp"
        beside.write_bytes(content)
        os.replace(beside, folder / name)
