"""The simplest tokenizer: a token for each of the 256 bytes of UTF-8, and one for the end of a text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minllm.tokenizer import Tokenizer


class Bytes(Tokenizer):
    """Token n is the byte n; 256 begins and ends a text.

    saved: a folder that a run kept; bytes need nothing from it.
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
        """Bytes are bytes: there is nothing to keep."""
