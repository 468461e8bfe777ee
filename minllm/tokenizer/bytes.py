"""The simplest tokenizer: one token for each of the 256 byte values, and one that begins and ends a text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minllm.tokenizer import Tokenizer


class Bytes(Tokenizer):
    """Token n is the byte n; 256 begins and ends a text.

    saved: ignored: the tokenizer needs no files.
    """

    vocab_size = 257
    bos_id = eos_id = pad_id = 256
    table = [*(bytes([byte]) for byte in range(256)), b""]
    fingerprint = "bytes"

    def __init__(self, saved: Path | None = None) -> None:
        pass

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def save(self, folder: Path) -> None:
        """Write nothing: the tokenizer needs no files."""
