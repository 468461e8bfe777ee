"""Random numbers that are the same on every machine and in every version of Python: `random.random` alone is."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


class Draw:
    """Draws from a stream of random numbers, which depends on a seed, a text."""

    def __init__(self, seed: str) -> None:
        self.random = Random(seed).random

    def below(self, n: int) -> int:
        """Return a whole number from 0 to n - 1."""
        return int(self.random() * n)

    def between(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return low + self.below(high - low + 1)

    def one(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def several(self, items: Sequence[Item], count: int) -> list[Item]:
        """Return items, each independent of the others."""
        return [self.one(items) for _ in range(count)]

    def distinct(self, items: Sequence[Item], count: int) -> list[Item]:
        """Return different items in random order."""
        left = list(items)
        for n in range(count):
            other = n + self.below(len(left) - n)
            left[n], left[other] = left[other], left[n]
        return left[:count]

    def weighted(self, ends: Sequence[float]) -> int:
        """Return the number of an interval, with a probability proportional to its width; `ends` are cumulative."""
        return min(bisect(ends, self.random() * ends[-1]), len(ends) - 1)
