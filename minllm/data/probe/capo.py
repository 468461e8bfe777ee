"""`data=probe/capo`: how many bits of knowledge a model holds for each of its parameters.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import functools
import math
from dataclasses import dataclass

from minllm.data.probe import Example, Probe, Symbols
from minllm.data.probe.draw import Draw
from minllm.data.source import Split
from minllm.errors import UserError
from minllm.schema.options import Count

SIZES = {"month": 12, "day": 28, "year": 200, "city": 200, "university": 300, "field": 100, "company": 263}
"""How many values each attribute has."""
NAMES = {"first": 400, "middle": 400, "last": 1000}


@dataclass(frozen=True, kw_only=True)
class Capo(Probe):
    """People with three names, and seven attributes of each in random order (2404.05405, 2512.17351).

    Training and validation ask for the same facts by design; the orders aren't the same. Attributes are uniform and
    independent, so a model that knows them all holds `bits` bits. One with a validation loss of L nats for each answer
    holds about `bits` - people · 7 · L / ln 2 bits; divided by its parameters, that's its capacity, about 2 in the
    papers. There the biographies are English sentences; here an attribute's name stands for its sentence.

    people: how many there are
    """

    people: Count = 20_000

    def check_options(self) -> None:
        if 2 * self.people > math.prod(NAMES.values()):
            raise UserError(f"data.people={self.people} is more than half of the names that people may have.")

    @property
    def bits(self) -> float:
        """The entropy of all facts."""
        return self.people * math.fsum(map(math.log2, SIZES.values()))

    @functools.cached_property
    def facts(self) -> dict[tuple[str, ...], dict[str, str]]:
        """The attributes of each person."""
        draw, facts = Draw(f"facts {self.first_seed}"), {}
        while len(facts) < self.people:
            name = tuple(f"{kind}{draw.below(size)}" for kind, size in NAMES.items())
            facts[name] = {kind: f"{kind}{draw.below(size)}" for kind, size in SIZES.items()}
        return facts

    @functools.cached_property
    def names(self) -> list[tuple[str, ...]]:
        return list(self.facts)

    @property
    def symbols(self) -> Symbols:
        return [*SIZES, *(f"{kind}{n}" for kind, size in (NAMES | SIZES).items() for n in range(size))]

    @property
    def longest(self) -> int:
        return len(NAMES) + 2 * len(SIZES)

    def example(self, draw: Draw, split: Split) -> Example:
        name = draw.one(self.names)
        first, *others = draw.distinct(list(SIZES), len(SIZES))
        example = [[*name, first], [self.facts[name][first]]]
        return example + [part for kind in others for part in ([kind], [self.facts[name][kind]])]

    def answer(self, before: Symbols) -> Symbols:
        return [self.facts[tuple(before[: len(NAMES)])][before[-1]]]
