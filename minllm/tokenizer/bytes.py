"""The simplest tokenizer: a token for each of the 256 bytes of UTF-8, and one for the end of a text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minllm.tokenizer import join_bytes


class Bytes:
    """Token n is the byte n; 256 ends a text.

    saved: a folder that a run kept; bytes need nothing from it.
    """

    vocab_size = 257
    eot = 256
    fingerprint = "bytes"

    def __init__(self, saved: Path | None = None) -> None:
        self.table = [bytes([byte]) for byte in range(256)] + [b""]

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return join_bytes(self.table, ids)

    def token_bytes(self, token: int) -> bytes:
        return self.table[token]

    def save(self, folder: Path) -> None:
        """Bytes are bytes: there is nothing to keep."""
