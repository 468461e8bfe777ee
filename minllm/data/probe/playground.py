"""`data=probe/depo`, `brevo` and `mano`: depth, breadth and manipulation of knowledge (2512.17351).

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from minllm.data.probe import Example, Probe, Symbols
from minllm.data.probe.draw import Draw
from minllm.data.probe.names import drawn_names, names_in, pieces, possible_names
from minllm.data.source import Split
from minllm.errors import UserError
from minllm.schema.options import Count

Name = tuple[str, ...]
ASK, IS = "?", "="


@dataclass(frozen=True, kw_only=True)
class Named(Probe):
    """What probes about things with names share.

    nodes: how many things a validation example has; training examples may have fewer
    letters: how many symbols may stand inside names, and as many others at their end
    min_name, max_name: of a name, in symbols
    """

    nodes: Count = 225
    letters: Count = 50
    min_name: Count = 1
    max_name: Count = 2

    def check_options(self) -> None:
        if self.min_name > self.max_name:
            raise UserError(f"data.min_name={self.min_name} is greater than data.max_name={self.max_name}.")
        if self.nodes < 3:
            raise UserError(f"data.nodes={self.nodes} must be 3 or more.")
        if 2 * self.nodes > possible_names(self.letters, self.min_name, self.max_name):
            raise UserError(
                f"There are too few names of {self.min_name} to {self.max_name} of data.letters={self.letters} for"
                f" data.nodes={self.nodes}. Increase data.letters or data.max_name."
            )

    def names(self, draw: Draw, count: int) -> list[Name]:
        return drawn_names(draw, count, self.letters, self.min_name, self.max_name)


@dataclass(frozen=True, kw_only=True)
class Depo(Named):
    """Things in a circle, each with the next, in random order: what comes k steps after this one?

    Training circles have 3 things or more, smaller ones more often. Validation circles have all `nodes`, and k is a
    power of two. The other options are those of `Named`.

    hops: the greatest k
    queries: how many questions an example has at most
    """

    hops: Count = 8
    queries: Count = 10

    @property
    def symbols(self) -> Symbols:
        return [IS, *(f"hop{k}" for k in range(1, self.hops + 1)), *pieces(self.letters)]

    @property
    def longest(self) -> int:
        return 2 * self.nodes * self.max_name + min(self.queries, self.nodes) * (2 + 2 * self.max_name)

    @functools.cached_property
    def ends(self) -> list[float]:
        """The cumulative weights of 3, 4, … things."""
        return list(accumulate(1 / (n + math.sqrt(self.nodes)) for n in range(3, self.nodes + 1)))

    def example(self, draw: Draw, split: Split) -> Example:
        count = self.nodes if split == "val" else 3 + draw.weighted(self.ends)
        names = self.names(draw, count)
        order = draw.distinct(range(count), count)
        given = [symbol for n in order for name in (names[n], names[(n + 1) % count]) for symbol in name]
        powers = [2**n for n in range(self.hops.bit_length())]
        example: list[Symbols] = []
        for n in draw.distinct(range(count), min(self.queries, count)):
            k = draw.one(powers) if split == "val" else draw.between(1, self.hops)
            example += [[*given, f"hop{k}", *names[n], IS], names[(n + k) % count]]
            given = []
        return example

    def answer(self, before: Symbols) -> Symbols:
        """Follow the pairs, which stand before the first question."""
        asked = [n for n, symbol in enumerate(before) if symbol.startswith("hop")]
        names = list(names_in(before[: asked[0]]))
        after = dict(zip(names[::2], names[1::2]))
        name = tuple(before[asked[-1] + 1 : -1])
        for _ in range(int(before[asked[-1]].removeprefix("hop"))):
            name = after[name]
        return name


@dataclass(frozen=True, kw_only=True)
class Brevo(Named):
    """What depends on what, in random order: list all that one thing depends on, each after what it depends on.

    Any such order is right, and `is_right` checks it. The answer that is learned is one of them: of the things that may
    come next, the one that the text names first. In the paper it's a random one; then no accuracy of single symbols
    could be 1. The other options are those of `Named`.
    """

    @property
    def symbols(self) -> Symbols:
        return [ASK, IS, *pieces(self.letters)]

    @property
    def longest(self) -> int:
        edges = sum(min(n, 4) for n in range(1, self.nodes))
        return (2 * edges + 1 + self.nodes) * self.max_name + 2

    def example(self, draw: Draw, split: Split) -> Example:
        count = self.nodes if split == "val" else draw.between(3, self.nodes)
        edges, last = self.edges(draw, self.names(draw, count))
        given = [symbol for edge in edges for name in edge for symbol in name]
        given += [ASK, *last, IS]
        return [given, self.answer(given)]

    def edges(self, draw: Draw, names: list[Name]) -> tuple[list[tuple[Name, Name]], Name]:
        """Draw pairs of a thing and one that depends on it, and a thing to ask for, which depends on some.

        Each depends on up to four things, and up to four depend on it; some depend on none.
        """
        room = dict.fromkeys(names, 4)
        edges: list[tuple[Name, Name]] = []
        first = draw.between(1, (len(names) - 1) // 4 + 1)
        for n in range(first, len(names)):
            possible = [name for name in names[:n] if room[name]]
            for name in draw.distinct(possible, draw.between(1, min(len(possible), 4))):
                room[name] -= 1
                edges.append((name, names[n]))
        return draw.distinct(edges, len(edges)), names[-1]

    def answer(self, before: Symbols) -> Symbols:
        needs, asked = self.read(before)
        listed: list[Name] = []
        left = wanted(needs, asked)
        while left:
            following = next(name for name in needs if name in left and needs[name] <= set(listed))
            listed.append(following)
            left.remove(following)
        return [symbol for name in listed for symbol in name]

    def is_right(self, before: Symbols, answer: Symbols) -> bool:
        needs, asked = self.read(before)
        listed = list(names_in(answer))
        in_order = all(needs.get(name, set()) <= set(listed[:n]) for n, name in enumerate(listed))
        is_whole = sum(map(len, listed)) == len(answer) and sorted(listed) == sorted(wanted(needs, asked))
        return in_order and is_whole

    def read(self, before: Symbols) -> tuple[dict[Name, set[Name]], Name]:
        """Return what each thing depends on, in the order in which the text names them, and what is asked for."""
        end = list(before).index(ASK)
        names = list(names_in(before[:end]))
        needs: dict[Name, set[Name]] = {name: set() for name in names}
        for name, dependent in zip(names[::2], names[1::2]):
            needs[dependent].add(name)
        return needs, tuple(before[end + 1 : -1])


def wanted(needs: Mapping[Name, set[Name]], asked: Name) -> set[Name]:
    """Return all that a thing depends on, and itself."""
    found, left = {asked}, [asked]
    while left:
        new = needs[left.pop()] - found
        found |= new
        left += sorted(new)
    return found


@dataclass(frozen=True, kw_only=True)
class Mano(Probe):
    """Expressions in prefix notation, of + - and * modulo a number: what is the value?

    In training, the number of operations is uniform up to `operations`; in validation it's that.

    operations: how many operations an expression has at most
    modulus: numbers are below it
    """

    operations: Count = 10
    modulus: Count = 23

    @functools.cached_property
    def numbers(self) -> list[str]:
        return [str(n) for n in range(self.modulus)]

    @property
    def symbols(self) -> Symbols:
        return ["+", "-", "*", IS, *(f"length{n}" for n in range(1, self.operations + 1)), *self.numbers]

    @property
    def longest(self) -> int:
        return 2 * self.operations + 4

    def example(self, draw: Draw, split: Split) -> Example:
        operations = self.operations if split == "val" else draw.between(1, self.operations)
        given = [f"length{operations}", *self.expression(draw, operations), IS]
        return [given, self.answer(given)]

    def expression(self, draw: Draw, operations: int) -> list[str]:
        if operations == 0:
            return [draw.one(self.numbers)]
        operation, left = draw.one("+-*"), draw.below(operations)
        return [operation, *self.expression(draw, left), *self.expression(draw, operations - 1 - left)]

    def answer(self, before: Symbols) -> Symbols:
        values: list[int] = []
        for symbol in reversed(
            before[1:-1]
        ):  # what an operation needs has been read when it's met from the right
            if symbol in self.numbers:
                values.append(int(symbol))
            else:
                one, other = values.pop(), values.pop()
                result = {"+": one + other, "-": one - other, "*": one * other}[symbol]
                values.append(result % self.modulus)
        return [str(values.pop())]
