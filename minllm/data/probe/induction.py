"""`data=probe/induction`: induction heads.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

from dataclasses import dataclass

from minllm.data.probe import Example, Probe, Symbols
from minllm.data.probe.copying import letter
from minllm.data.probe.draw import Draw
from minllm.data.source import Split
from minllm.errors import UserError
from minllm.schema.options import Count

MARK = "*"


@dataclass(frozen=True, kw_only=True)
class Induction(Probe):
    """Random letters with a mark somewhere and at the end: which letter followed the mark (2212.14052, 2312.00752)?

    letters: how many different ones there are
    length: of an example, with both marks and without the answer
    val_length: of the examples that are validated on; null: as in training
    """

    letters: Count = 16
    length: Count = 256
    val_length: Count | None = None

    def check_options(self) -> None:
        if min(self.length, self.val_length or self.length) < 3:
            raise UserError("data.length must be 3 or more: a mark, a letter, and the mark again.")

    @property
    def alphabet(self) -> Symbols:
        return [letter(n) for n in range(self.letters)]

    @property
    def symbols(self) -> Symbols:
        return [MARK, *self.alphabet]

    @property
    def longest(self) -> int:
        return max(self.length, self.val_length or 0) + 1

    def example(self, draw: Draw, split: Split) -> Example:
        length = (self.val_length if split == "val" else None) or self.length
        given = [*draw.several(self.alphabet, length - 1), MARK]
        given[draw.below(length - 2)] = MARK
        return [given, self.answer(given)]

    def answer(self, before: Symbols) -> Symbols:
        return [before[before.index(MARK) + 1]]
