"""A story's beginning and its rest, and the exact probability of a beginning."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import fsum, log2
from random import Random

from minllm.data.source import Pair
from minllm.data.tales.derive import Fork, Over, Plot, Reader, derivations

SENTENCE_END = re.compile(r'(?:\."|[.!?])(?=\s)')
"""An end is recognised by what comes up to it and the white space after it, and not by what follows."""

CUTS = 4  # a story is cut after its first, second, … sentence; every story has more


def cut(text: str, seed: int) -> Pair:
    """Cut a text after one of its first sentences, which one depends on the seed alone."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    at = ends[int(Random(f"cut {seed}").random() * CUTS)]
    return Pair(text[:at], text[at:])


def bits_of_rest(plot: Plot, pair: Pair) -> float:
    """Return the surprisal of a pair's target, given its beginning and that it was cut there.

    Whether a story is cut at the end of its n-th sentence doesn't depend on what follows, so this is the surprisal of
    the story minus that of all stories in which a sentence ends where the given part does.
    """
    whole = fsum(2**-bits for bits in derivations(plot, pair.given + pair.target))
    begun = fsum(probability_of_beginning(plot, pair.given + space) for space in (" ", "\n"))
    return log2(begun) - log2(whole)


def probability_of_beginning(plot: Plot, text: str) -> float:
    """Return the probability that a story begins with a text, summed over all ways to tell it."""
    total, paths = [], [()]
    while paths:
        reader = Opening(text, path := paths.pop())
        try:
            reader.follow(plot)
        except Fork as fork:
            paths.extend((*path, rank) for rank in fork.ways)
        else:
            if reader.status != "broken":
                total.append(2**-reader.bits)
    return fsum(total)


class Opening(Reader):
    """A reader that stops where the text ends, before it draws what can't be seen in the text."""

    def choose(self, options: Sequence, surface: Callable[..., str]):
        if self.at == len(self.text):
            raise Over
        return super().choose(options, surface)
