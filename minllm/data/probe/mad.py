"""`data=probe/mad_…`: the six tasks of mechanistic architecture design, MAD (2403.17844).

Where the paper asks for answers that the model then doesn't read, so do these.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar, Literal

from minllm.data.probe import Example, Probe, Symbols
from minllm.data.probe.draw import Draw
from minllm.data.source import Split
from minllm.errors import UserError
from minllm.schema.options import BelowOne, Count

BLANK, MARK = "_", "|"


@dataclass(frozen=True, kw_only=True)
class InContextRecall(Probe):
    """Keys and values that alternate; within an example, a key always has the same value, which is asked for again.

    Training counts all symbols, and validation the values of keys that have occurred before.

    vocabulary: how many symbols there are, of which half are keys and half are values
    length: of an example, in symbols
    learn: what training counts: all symbols, as in the paper, or the answers alone
    """

    vocabulary: Count = 16
    length: Count = 128
    learn: Literal["all", "answers"] = "all"

    def check_options(self) -> None:
        if self.vocabulary < 4:
            raise UserError(f"data.vocabulary={self.vocabulary} must be 4 or more: two keys and two values.")
        if self.length < 2 * (self.vocabulary // 2 + 1):
            raise UserError(
                f"data.length={self.length} is too short for a key to occur twice in each example: type"
                f" data.length={2 * (self.vocabulary // 2 + 1)}."
            )

    @property
    def learns_all(self) -> bool:
        return self.learn == "all"

    @functools.cached_property
    def keys(self) -> list[str]:
        return [f"k{n}" for n in range(self.vocabulary // 2)]

    @functools.cached_property
    def values(self) -> list[str]:
        return [f"v{n}" for n in range(self.vocabulary - self.vocabulary // 2)]

    @property
    def symbols(self) -> Symbols:
        return [*self.keys, *self.values]

    @property
    def longest(self) -> int:
        return self.length

    def example(self, draw: Draw, split: Split) -> Example:
        value_of: dict[str, str] = {}
        example: list[list[str]] = [[]]
        for _ in range(self.length // 2):
            key = draw.one(self.keys)
            example[-1] += [*self.noise(draw), key]
            if key in value_of:
                example += [[value_of[key]], []]
            else:
                value_of[key] = draw.one(self.values)
                example[-1].append(value_of[key])
        return example[:-1]  # what follows the last answer doesn't matter

    def noise(self, draw: Draw) -> Symbols:
        """Draw what stands before a key."""
        return []

    def answer(self, before: Symbols) -> Symbols:
        """The symbol after the first occurrence of the last one."""
        return [before[before.index(before[-1]) + 1]]


@dataclass(frozen=True, kw_only=True)
class NoisyRecall(InContextRecall):
    """In-context recall with noise before some of the keys. The other options are those of `InContextRecall`.

    noise_vocabulary: how many symbols of noise there are, besides those of the vocabulary
    noise_share: share of symbols that are noise
    """

    noise_vocabulary: Count = 16
    noise_share: BelowOne = 0.2

    @functools.cached_property
    def noises(self) -> list[str]:
        return [f"n{n}" for n in range(self.noise_vocabulary)]

    @property
    def symbols(self) -> Symbols:
        return [*self.keys, *self.values, *self.noises]

    def noise(self, draw: Draw) -> Symbols:
        noise = []
        while draw.random() < self.odds:
            noise.append(draw.one(self.noises))
        return noise

    @property
    def odds(self) -> float:
        """The probability of one more symbol of noise, so that noise has its share beside keys and values."""
        per_pair = 2 * self.noise_share / (1 - self.noise_share)
        return per_pair / (1 + per_pair)

    def example(self, draw: Draw, split: Split) -> Example:
        """Draw an example, and cut it where it becomes too long."""
        while True:
            example = shortened(super().example(draw, split), self.length)
            if example:
                return example


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(InContextRecall):
    """In-context recall of keys and values of one to three symbols. The other options are those of `InContextRecall`.

    No key of an example begins with another, so that it's known where a key ends.

    longest_key, longest_value: in symbols
    """

    longest_key: Count = 3
    longest_value: Count = 3

    def check_options(self) -> None:
        super().check_options()
        enough = (len(self.keys) + 1) * (self.longest_key + self.longest_value)
        if self.length < enough:
            raise UserError(
                f"data.length={self.length} is too short for a key to occur twice in each example: type"
                f" data.length={enough}."
            )

    def example(self, draw: Draw, split: Split) -> Example:
        known = self.motifs(draw)
        value_of: dict[tuple[str, ...], list[str]] = {}
        example: list[list[str]] = [[]]
        while sum(map(len, example)) < self.length:
            key = draw.one(known)
            example[-1] += key
            if key in value_of:
                example += [value_of[key], []]
            else:
                value_of[key] = draw.several(self.values, draw.between(1, self.longest_value))
                example[-1] += value_of[key]
        return shortened(example[:-1], self.length)

    def motifs(self, draw: Draw) -> list[tuple[str, ...]]:
        """Draw as many keys as there are symbols for keys."""
        known: list[tuple[str, ...]] = []
        while len(known) < len(self.keys):
            motif = tuple(draw.several(self.keys, draw.between(1, self.longest_key)))
            if not any(motif[: len(other)] == other[: len(motif)] for other in known):
                known.append(motif)
        return known

    def answer(self, before: Symbols) -> Symbols:
        """The values after the first occurrence of the last key, which is all keys after the last value."""
        pieces: list[tuple[bool, list[str]]] = []
        for symbol in before:
            is_key = symbol in self.keys
            if not pieces or pieces[-1][0] != is_key:
                pieces.append((is_key, []))
            pieces[-1][1].append(symbol)
        return pieces[pieces.index(pieces[-1]) + 1][1]


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Probe):
    """Letters scattered among blanks, a mark, and then the letters in their order, each asked for at a blank.

    vocabulary: how many symbols there are, with the blank and the mark
    length: of an example, with the blanks at its end
    n_letters: how many are to be copied
    """

    hides_answers: ClassVar[bool] = True

    vocabulary: Count = 16
    length: Count = 256
    n_letters: Count = 16

    def check_options(self) -> None:
        if self.vocabulary < 4:
            raise UserError(
                f"data.vocabulary={self.vocabulary} must be 4 or more: a blank, a mark and two letters."
            )
        if self.length < 2 * self.n_letters + 1:
            raise UserError(
                f"data.length={self.length} is too short for data.n_letters={self.n_letters}: type"
                f" data.length={2 * self.n_letters + 1}."
            )

    @functools.cached_property
    def letters(self) -> list[str]:
        return [f"x{n}" for n in range(self.vocabulary - 2)]

    @property
    def symbols(self) -> Symbols:
        return [BLANK, MARK, *self.letters]

    @property
    def longest(self) -> int:
        return self.length

    def example(self, draw: Draw, split: Split) -> Example:
        given = [BLANK] * (self.length - self.n_letters - 1)  # with a beginning of the text
        for place in draw.distinct(range(len(given)), self.n_letters):
            given[place] = draw.one(self.letters)
        first, *others = (symbol for symbol in given if symbol != BLANK)
        rest = [part for letter in others for part in ([BLANK], [letter])]
        return [[*given, MARK], [first], *rest]

    def answer(self, before: Symbols) -> Symbols:
        """The nth letter at the nth place from the mark on."""
        mark = before.index(MARK)
        letters = [symbol for symbol in before[:mark] if symbol != BLANK]
        return [letters[len(before) - mark - 1]]


@dataclass(frozen=True, kw_only=True)
class Memorization(Probe):
    """Keys whose values are the same in all examples, and never in the text, so that a model has to remember them.

    Training and validation ask for the same facts by design; the examples aren't the same. A key is in an example only
    once.

    facts: how many keys have a value
    values: how many different values there are
    length: of an example, in symbols, half of which are keys and half blanks in place of the values
    """

    hides_answers: ClassVar[bool] = True

    facts: Count = 256
    values: Count = 256
    length: Count = 32

    def check_options(self) -> None:
        if self.length // 2 > self.facts or self.length < 2:
            raise UserError(
                f"data.length={self.length} must be from 2 to twice data.facts={self.facts}: a key is in an example"
                " only once."
            )

    @functools.cached_property
    def value_of(self) -> dict[str, str]:
        draw = Draw(f"facts {self.first_seed}")
        return {f"k{n}": f"v{draw.below(self.values)}" for n in range(self.facts)}

    @property
    def symbols(self) -> Symbols:
        return [BLANK, *self.value_of, *(f"v{n}" for n in range(self.values))]

    @property
    def longest(self) -> int:
        return self.length

    def example(self, draw: Draw, split: Split) -> Example:
        first, *others = draw.distinct(list(self.value_of), self.length // 2)
        rest = [part for key in others for part in ([BLANK, key], [self.value_of[key]])]
        return [[first], [self.value_of[first]], *rest]

    def answer(self, before: Symbols) -> Symbols:
        return [self.value_of[before[-1]]]


@dataclass(frozen=True, kw_only=True)
class Compression(Probe):
    """Random letters, a mark, and then each place in random order: which letter stood there?

    In the paper, one vector at the mark has to hold all letters: a decoder of its own gets it with a place, and nothing
    else. Here the model itself is asked. A mixer with a state has to hold the letters in it all the same, but attention
    can look them up.

    vocabulary: how many letters there are
    length: how many letters an example has
    """

    hides_answers: ClassVar[bool] = True

    vocabulary: Count = 16
    length: Count = 32

    @functools.cached_property
    def letters(self) -> list[str]:
        return [f"x{n}" for n in range(self.vocabulary)]

    @functools.cached_property
    def places(self) -> list[str]:
        return [f"@{n}" for n in range(self.length)]

    @property
    def symbols(self) -> Symbols:
        return [MARK, *self.letters, *self.places]

    @property
    def longest(self) -> int:
        return 2 * self.length + 2

    def example(self, draw: Draw, split: Split) -> Example:
        letters = draw.several(self.letters, self.length)
        example, given = [], [*letters, MARK]
        for place in draw.distinct(range(self.length), self.length):
            example += [[*given, self.places[place]], [letters[place]]]
            given = []
        return example

    def answer(self, before: Symbols) -> Symbols:
        return [before[self.places.index(before[-1])]]


def shortened(example: Example, length: int) -> Example:
    """Return the first answers of an example, as many as fit into `length` symbols."""
    fitting, size = [], 0
    for given, answer in zip(example[::2], example[1::2]):
        size += len(given) + len(answer)
        if size > length:
            break
        fitting += [given, answer]
    return fitting
