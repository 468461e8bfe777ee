"""A tiny corpus in which a token tells which document it's from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from minllm.data.source import Source, Split
from minllm.tokenizer.bytes import Bytes

LENGTHS = (3, 40, 7, 16, 15, 1, 90, 12, 5, 31, 33, 8)  # in tokens, around the seq_len of 16


@dataclass(frozen=True, kw_only=True)
class Letters(Source):
    """Documents of one letter each, so that a token tells which document it's from."""

    seq_len: int = 16

    @property
    def fingerprint(self) -> str:
        return "letters"

    def documents(self, split: Split) -> Iterator[str]:
        first = "a" if split == "train" else "A"
        for number, length in enumerate(LENGTHS):
            yield chr(ord(first) + number) * length

    def floor_bits_per_byte(self) -> float | None:
        return 0.25


def tally(batches) -> Counter[int]:
    return Counter(int(target) for batch in batches for target in batch.targets_BT[batch.targets_BT != -100])


def expected(first: str) -> Counter[int]:
    counts = {ord(first) + number: length for number, length in enumerate(LENGTHS)}
    return Counter({**counts, Bytes.eos_id: len(LENGTHS)})
