"""`data=probe/lano`: sentences of a context-free grammar.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from minllm.data.probe import Example, Probe, Symbols
from minllm.data.probe.draw import Draw
from minllm.data.source import Split

GRAMMARS = {
    "cfg3f": """
        12 102 200 11
        202 12 22; 00 01 102; 21 10 012 02
        22 020 10 11; 210 12 21; 120 200 02
        12 212 021; 02 202 21 022; 011 110 00 221
        122 202 022; 11 20 200; 020 21 112
        110 211 201 21; 200 01 220; 010 22 00
    """,
    "cfg3j": """
        00 10 212
        01 002 100; 201 21 011; 00 120 022
        110 022 01; 111 22 212; 20 011 020
        12 02 22; 11 222 21; 102 001 01
        02 20 11; 01 210 011; 122 00 12
        002 10 21; 011 22 11; 001 100 211
        01 11 221; 20 12 001; 210 02 21
    """,
    "cfg3k": """
        01 22 21
        20 211 22 02; 121 122 11 01; 21 12 002
        120 20 202 221; 111 02 110 210; 21 020 100 122
        21 12 212 100; 121 200 22; 11 20 011
        022 112 22; 01 011 100 11; 21 00 12
        00 11 220 020; 102 000 010; 01 110 202 12
        22 020 10; 12 001 20 011; 022 11 000 212
    """,
    "small": """
        01 20
        02 11; 120 21; 00 12
        10 012; 22 01; 20 112
        01 122; 20 11; 21 00
    """,
}
"""A line for each level, from the root on; each of its symbols, separated by semicolons, has rules that are equally
likely: the symbols of the next level that it becomes. The symbols of the last level are a, b and c. `small` is minllm's
own; the others are those of the papers (2305.13673, 2512.17351)."""
LETTERS, END = "abc", "."
SCALE = 1.75  # about one over the probability of a letter

Rules = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Lano(Probe):
    """Sentences of a grammar, each followed by a full stop; every symbol is predicted.

    Answers aren't certain, so the best accuracy is below 1. It and the entropy are those of the grammar itself, by
    dynamic programming over all derivations.

    grammar: which one
    """

    grammar: Literal["cfg3f", "cfg3j", "cfg3k", "small"] = "cfg3f"

    learns_all: ClassVar[bool] = True  # in training, all symbols are one answer, which is the same

    @functools.cached_property
    def levels(self) -> list[list[Rules]]:
        """The rules of each symbol of each level."""
        lines = GRAMMARS[self.grammar].strip().splitlines()
        return [
            [tuple(tuple(map(int, rule)) for rule in rules.split()) for rules in line.split(";")]
            for line in lines
        ]

    @property
    def symbols(self) -> Symbols:
        return [*LETTERS, END]

    @property
    def longest(self) -> int:
        lengths = [1] * len(LETTERS)
        for level in reversed(self.levels):
            lengths = [max(sum(lengths[below] for below in rule) for rule in rules) for rules in level]
        return lengths[0] + 1

    def example(self, draw: Draw, split: Split) -> Example:
        return [part for symbol in (*self.sentence(draw), END) for part in ([], [symbol])]

    def sentence(self, draw: Draw) -> list[str]:
        symbols = [0]
        for rules in self.levels:
            symbols = [below for symbol in symbols for below in draw.one(rules[symbol])]
        return [LETTERS[symbol] for symbol in symbols]

    def key(self, example: Example) -> Symbols:
        return [symbol for part in example for symbol in part]

    def answer(self, before: Symbols) -> Symbols:
        """The most probable next symbol, given all derivations."""
        following = self.following(before)[-1]
        return [self.symbols[int(following.argmax())]]

    def is_right(self, before: Symbols, answer: Symbols) -> bool:
        """Whether a sentence of the grammar begins so, and is complete if it ends."""
        symbols = [*before, *answer]
        if END in symbols[:-1]:
            return False
        return all(
            following[self.symbols.index(symbol)] > 0
            for symbol, following in zip(symbols, self.following(symbols[:-1]))
        )

    def floor_bits_per_byte(self) -> float:
        bits = size = 0.0
        for _, probability in self.best:
            bits -= math.log2(probability)
            size += 2  # a symbol and a space
        return bits / size

    @property
    def ceiling(self) -> float:
        """The accuracy of the most probable symbols."""
        return sum(is_best for is_best, _ in self.best) / len(self.best)

    @functools.cached_property
    def best(self) -> list[tuple[bool, float]]:
        """For each symbol of the validation examples, whether it's the most probable one, and its probability."""
        found = []
        for example in self.examples("val"):
            symbols = self.key(example)
            for symbol, following in zip(symbols, self.following(symbols[:-1])):
                number = self.symbols.index(symbol)
                found.append((int(following.argmax()) == number, float(following[number])))
        return found

    def following(self, symbols: Symbols) -> np.ndarray:
        """Return the probabilities of the symbol after each beginning of a text, the empty one first, (N + 1, 4).

        This is the inside algorithm, for all beginnings at once. `inside[s][i, j]` is the probability that the symbol s
        becomes the letters from i to j (exclusive), and `begun[s][i, n, t]` that it becomes something that begins with
        the letters from i to n and then the letter t. Each is multiplied by SCALE for each letter, against underflow.
        """
        known = np.array([LETTERS.index(symbol) for symbol in symbols], np.int64)
        N, T = len(known), len(LETTERS)
        inside, begun = np.zeros((T, N + 1, N + 1)), np.zeros((T, N + 1, N + 1, T))
        inside[known, np.arange(N), np.arange(1, N + 1)] = SCALE
        for letter in range(T):
            begun[letter, np.arange(N + 1), np.arange(N + 1), letter] = SCALE
        for level in reversed(self.levels):
            of_rules = [[self.joined(rule, inside, begun) for rule in rules] for rules in level]
            inside = np.array([np.mean([whole for whole, _ in found], axis=0) for found in of_rules])
            begun = np.array([np.mean([start for _, start in found], axis=0) for found in of_rules])
        ends = inside[0, 0, :, None] * SCALE
        following = np.concatenate([begun[0, 0], ends], axis=1)
        return following / following.sum(1, keepdims=True)

    @staticmethod
    def joined(rule: tuple[int, ...], inside: np.ndarray, begun: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `inside` and `begun` of a sequence of symbols."""
        *before, last = rule
        whole, start = inside[last], begun[last]
        for symbol in reversed(before):
            whole = inside[symbol] @ whole
            start = begun[symbol] + np.tensordot(inside[symbol], start, axes=1)
        return whole, start
