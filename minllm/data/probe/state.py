"""`data=probe/parity` and `data=probe/words`: tracking a state that each symbol changes.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar, Literal

from minllm.data.probe import Example, Probe, Symbols
from minllm.data.probe.draw import Draw
from minllm.data.source import Split, check_lengths
from minllm.errors import UserError
from minllm.schema.options import Count

Permutation = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Tracking(Probe):
    """What all probes of a state share: after each symbol of an example, the state is asked for.

    The states that were asked for aren't read, because each would say all that the next depends on.

    min_length, max_length: of an example, in symbols
    val_length: of the examples that are validated on; null: as in training
    """

    hides_answers: ClassVar[bool] = True

    min_length: Count = 32
    max_length: Count = 32
    val_length: Count | None = None

    def check_options(self) -> None:
        check_lengths(self.min_length, self.max_length)

    @property
    def longest(self) -> int:
        return max(self.max_length, self.val_length or 0) + 1

    @property
    def steps(self) -> Symbols:
        """What an example is drawn from."""
        raise NotImplementedError

    def states(self, steps: Symbols) -> Symbols:
        """Return the state after each step."""
        raise NotImplementedError

    def example(self, draw: Draw, split: Split) -> Example:
        length = draw.between(self.min_length, self.max_length)
        if split == "val":
            length = self.val_length or length
        steps = draw.several(self.steps, length)
        return [part for step, state in zip(steps, self.states(steps)) for part in ([step], [state])]

    def answer(self, before: Symbols) -> Symbols:
        return [self.states(before)[-1]]


@dataclass(frozen=True, kw_only=True)
class Parity(Tracking):
    """Bits, and after each whether the ones so far are even or odd. The options are those of `Tracking`."""

    @property
    def symbols(self) -> Symbols:
        return ["0", "1", "even", "odd"]

    @property
    def steps(self) -> Symbols:
        return ["0", "1"]

    def states(self, steps: Symbols) -> Symbols:
        ones, states = 0, []
        for step in steps:
            ones += step == "1"
            states.append("odd" if ones % 2 else "even")
        return states


@dataclass(frozen=True, kw_only=True)
class Words(Tracking):
    """Permutations of five things, and after each the product of all so far (2404.08819).

    In the group of all even permutations, A5, and so in S5, this is hard for models of a fixed depth that compute all
    positions in parallel. The other options are those of `Tracking`.

    group: all permutations of five things (S5), or the even ones (A5)
    only_swaps: whether each step swaps two things at most; with S5
    """

    group: Literal["S5", "A5"] = "S5"
    only_swaps: bool = False

    def check_options(self) -> None:
        super().check_options()
        if self.only_swaps and self.group == "A5":
            raise UserError("data.only_swaps=true needs data.group=S5: a swap is an odd permutation.")

    @functools.cached_property
    def elements(self) -> list[Permutation]:
        return [
            element
            for element in permutations(range(5))
            if self.group == "S5" or inversions(element) % 2 == 0
        ]

    @functools.cached_property
    def by_name(self) -> dict[str, Permutation]:
        return {step_name(element): element for element in self.elements}

    @property
    def symbols(self) -> Symbols:
        return [*map(step_name, self.elements), *map(state_name, self.elements)]

    @functools.cached_property
    def steps(self) -> Symbols:
        chosen = [element for element in self.elements if not self.only_swaps or moved(element) <= 2]
        return [step_name(element) for element in chosen]

    def states(self, steps: Symbols) -> Symbols:
        product, states = tuple(range(5)), []
        for step in steps:
            element = self.by_name[step]
            product = tuple(element[place] for place in product)
            states.append(state_name(product))
        return states


def step_name(element: Permutation) -> str:
    """Return a permutation as a step: where each of the five things goes."""
    return "".join(map(str, element))


def state_name(element: Permutation) -> str:
    return f"={step_name(element)}"


def inversions(element: Permutation) -> int:
    return sum(element[i] > element[j] for j in range(len(element)) for i in range(j))


def moved(element: Sequence[int]) -> int:
    """Return how many things a permutation moves; a swap moves two."""
    return sum(place != n for n, place in enumerate(element))
