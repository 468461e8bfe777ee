"""`data=probe/mqar`: multi-query associative recall.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import functools
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from minllm.data.probe import Example, Probe, Symbols
from minllm.data.probe.draw import Draw
from minllm.data.source import Split
from minllm.errors import UserError
from minllm.schema.options import Count, Positive

FILLER = "_"


@dataclass(frozen=True, kw_only=True)
class MQAR(Probe):
    """Pairs of a key and a value, then each key once more: what is its value (2312.04927)?

    The keys asked for stand in every other place at most; the rest is filler, which isn't random. How far a key is
    from the end of the pairs follows a power law. In the paper the row goes on with filler after the last query, and
    values have as many symbols as keys have with the filler.

    vocabulary: how many symbols there are: the filler and the keys are half of them, and values the other half
    n_pairs: how many keys have a value in an example
    length: tokens of an example, with the beginning of the text
    power: of the law of gaps; 1 would be uniform
    """

    hides_answers: ClassVar[bool] = True

    vocabulary: Count = 8192
    n_pairs: Count = 4
    length: Count = 64
    power: Positive = 0.01

    def check_options(self) -> None:
        if self.n_pairs > self.vocabulary // 2 - 1:
            raise UserError(
                f"data.n_pairs={self.n_pairs} is more than the keys of data.vocabulary={self.vocabulary}."
            )
        if self.places < self.n_pairs:
            raise UserError(
                f"data.length={self.length} is too short for data.n_pairs={self.n_pairs}: type"
                f" data.length={4 * self.n_pairs}."
            )

    @property
    def places(self) -> int:
        """How many places a query may have."""
        return (self.length - 2 * self.n_pairs) // 2

    @functools.cached_property
    def ends(self) -> list[float]:
        return list(accumulate(n ** (self.power - 1) for n in range(1, self.places + 1)))

    @functools.cached_property
    def keys(self) -> list[str]:
        return [f"k{n}" for n in range(1, self.vocabulary // 2)]

    @functools.cached_property
    def values(self) -> list[str]:
        return [f"v{n}" for n in range(self.vocabulary - self.vocabulary // 2)]

    @property
    def symbols(self) -> Symbols:
        return [FILLER, *self.keys, *self.values]

    @property
    def longest(self) -> int:
        return self.length

    def example(self, draw: Draw, split: Split) -> Example:
        value_of = dict(zip(draw.distinct(self.keys, self.n_pairs), draw.distinct(self.values, self.n_pairs)))
        given = [symbol for pair in value_of.items() for symbol in pair]
        asked: dict[int, str] = {}
        for key in value_of:
            place = draw.weighted(self.ends)
            while place in asked:
                place = draw.weighted(self.ends)
            asked[place] = key
        example: list[list[str]] = []
        at = 0
        for place in sorted(asked):
            given = given + [FILLER] * (2 * place - at) + [asked[place]]
            example += [given, [value_of[asked[place]]]]
            given, at = [], 2 * place + 1
        return example

    def answer(self, before: Symbols) -> Symbols:
        """The symbol after the first occurrence of the last one."""
        return [before[before.index(before[-1]) + 1]]
