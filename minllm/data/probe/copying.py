"""`data=probe/copying` and `data=probe/reversal`: repeat a string.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

from dataclasses import dataclass

from minllm.data.probe import Example, Probe, Symbols
from minllm.data.probe.draw import Draw
from minllm.data.source import Split, check_lengths
from minllm.schema.options import Count

MARK = "|"


@dataclass(frozen=True, kw_only=True)
class Copying(Probe):
    """Letters, a mark, and the same letters (2402.01032). Lengths and letters are uniform.

    letters: how many different ones there are
    min_length, max_length: of the string, in letters
    val_length: of the strings that are validated on; null: as in training
    """

    letters: Count = 26
    min_length: Count = 1
    max_length: Count = 64
    val_length: Count | None = None

    def check_options(self) -> None:
        check_lengths(self.min_length, self.max_length)

    @property
    def alphabet(self) -> Symbols:
        return [letter(n) for n in range(self.letters)]

    @property
    def symbols(self) -> Symbols:
        return [MARK, *self.alphabet]

    @property
    def longest(self) -> int:
        return 2 * max(self.max_length, self.val_length or 0) + 1

    def example(self, draw: Draw, split: Split) -> Example:
        length = draw.between(self.min_length, self.max_length)
        if split == "val":
            length = self.val_length or length
        given = [*draw.several(self.alphabet, length), MARK]
        return [given, self.answer(given)]

    def answer(self, before: Symbols) -> Symbols:
        return before[:-1]


@dataclass(frozen=True, kw_only=True)
class Reversal(Copying):
    """Letters, a mark, and the letters from the last to the first. The options are those of `Copying`."""

    def answer(self, before: Symbols) -> Symbols:
        return before[-2::-1]


def letter(n: int) -> str:
    """Return a to z, then a1 to z1, and so on."""
    return chr(ord("a") + n % 26) + (str(n // 26) if n >= 26 else "")
