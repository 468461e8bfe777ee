"""`data=reverse`: strings to reverse, copy or sort, which a small model learns in seconds.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal

from minllm.data.source import Pair, PairSource, Split, check_lengths, unescaped
from minllm.data.text import is_held_out
from minllm.errors import UserError
from minllm.schema.options import Count, Natural

HELD_OUT = 0.1  # share of all strings that are only validated on
TRIES = 1000  # draws for each string wanted, after which there are too few


@dataclass(frozen=True, kw_only=True)
class Reverse(PairSource):
    """Random strings, each with the result of `op`; the target is certain, so the floor is 0.

    Lengths are uniform, and so are the characters. A hash of a string decides whether it is held out, so that none is
    both trained and validated on. Validation strings are distinct; training strings may repeat.

    op: whether the target is the string reversed, copied, or its characters sorted as in `alphabet`
    alphabet: the characters of the strings
    min_length, max_length: in characters
    separator: the text after the string, which belongs to the given part; not in the alphabet
    train_pairs: how many pairs to train on
    val_pairs: how many pairs to validate on
    first_seed: the seed that the strings are drawn with
    """

    op: Literal["reverse", "copy", "sort"] = "reverse"
    alphabet: str = "abcdefghijklmnopqrstuvwxyz"
    min_length: Count = 1
    max_length: Count = 10
    separator: str = ":"
    train_pairs: Count = 20_000
    val_pairs: Count = 200
    first_seed: Natural = 0

    def __post_init__(self) -> None:
        if len(set(self.alphabet)) < max(len(self.alphabet), 2):
            raise UserError(f"data.alphabet={self.alphabet!r} must have two or more characters, each once.")
        check_lengths(self.min_length, self.max_length)
        mark = unescaped(self.separator)
        if not mark or set(mark) & set(self.alphabet):
            raise UserError(
                f"data.separator={self.separator!r} must be text without characters of data.alphabet, so that the end"
                " of the given part is known."
            )

    @property
    def fingerprint(self) -> str:
        options = [self.op, self.alphabet, self.min_length, self.max_length, unescaped(self.separator)]
        options += [self.train_pairs, self.val_pairs, self.first_seed]
        return hashlib.sha256(json.dumps(["reverse", 1, options]).encode()).hexdigest()

    @property
    def terms(self) -> str:
        return "MIT"

    def size(self, split: Split) -> int:
        mean = (self.min_length + self.max_length) / 2
        return int((2 * mean + 1) * (self.val_pairs if split == "val" else self.train_pairs))

    def floor_bits_per_byte(self) -> float:
        return 0.0

    def pairs(self, split: Split) -> Iterator[Pair]:
        """Yield the split's pairs. UserError if there are too few strings of these lengths."""
        count = self.val_pairs if split == "val" else self.train_pairs
        drawn = (text for text in islice(self.strings(split), TRIES * count) if text is not None)
        made = 0
        for text in islice(distinct(drawn) if split == "val" else drawn, count):
            made += 1
            yield Pair(text + unescaped(self.separator), self.answer(text))
        if made < count:
            raise UserError(
                f"There are too few strings of {self.min_length} to {self.max_length} of the characters of"
                f" data.alphabet={self.alphabet} for data.{split}_pairs={count}. Increase data.max_length."
            )

    def strings(self, split: Split) -> Iterator[str | None]:
        """Yield strings without end, and None for each draw that belongs to the other split."""
        random = Random(f"{split} {self.first_seed}")
        while True:
            # only `random` gives the same numbers in every version of Python
            length = self.min_length + int(random.random() * (self.max_length - self.min_length + 1))
            string = "".join(self.alphabet[int(random.random() * len(self.alphabet))] for _ in range(length))
            yield string if is_held_out(string, "data.alphabet", HELD_OUT) == (split == "val") else None

    def answer(self, string: str) -> str:
        if self.op == "sort":
            return "".join(sorted(string, key=self.alphabet.index))
        return string[::-1] if self.op == "reverse" else string


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Yield each text once, where it occurs first."""
    seen = set()
    for text in texts:
        if text not in seen:
            seen.add(text)
            yield text
