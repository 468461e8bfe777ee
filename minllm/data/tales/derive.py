"""Read a text back: every way in which the grammar could have told it, or where it leaves the language.

A reader is a teller that, instead of drawing, goes every way that agrees with a given text. It runs the very
same plots, so what it finds is true of the generator and not of a copy of its rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from minllm.data.tales.language import Teller, odds

Plot = Callable[[Teller], None]


@dataclass(frozen=True)
class Reading:
    """How far a text is a story.

    status: `complete`, a whole story; `prefix`, one that could go on; `broken`, one that has left the language
    offset: the characters that are right; the whole text unless it is broken
    expected: what the grammar could have said where the text broke, in alphabetical order
    recalled: the role (`hero`, `toy`, `place`, …) that the story got wrong, where only what it had said before
        decided what comes next; None where the break is of another sort
    """

    status: Literal["complete", "prefix", "broken"]
    offset: int
    expected: tuple[str, ...] = ()
    recalled: str | None = None


def derivations(plot: Plot, text: str) -> list[float]:
    """Return the bits of every derivation of exactly this text; an unambiguous grammar has one at most."""
    return [reader.bits for reader in _readers(plot, text) if reader.status == "complete"]


def read(plot: Plot, text: str) -> Reading:
    """Say whether a text is a story, the beginning of one, or where and how it breaks."""
    best: Reader | None = None
    order = ("broken", "prefix", "complete")
    for reader in _readers(plot, text):
        if best is None or (order.index(reader.status), reader.reach) > (
            order.index(best.status),
            best.reach,
        ):
            best = reader
    assert best is not None
    if best.status != "broken":
        return Reading(best.status, len(text))
    return Reading("broken", best.reach, tuple(sorted(best.expected)), best.recalled)


class Reader(Teller):
    """Follows a text through a plot; `turns` are the ways to go where the text allows more than one."""

    def __init__(self, text: str, turns: Sequence[int]):
        super().__init__(random=_no_chance)
        self.text, self.turns = text, iter(turns)
        self.at = self.reach = 0
        self.expected: set[str] = set()
        self.recalled: str | None = None
        self.status: Literal["complete", "prefix", "broken"] = "broken"

    def follow(self, plot: Plot) -> None:
        """Tell the plot as the text has it; raises Fork where the text allows several ways to go."""
        try:
            plot(self)
            self.status = "complete" if self.at == len(self.text) else "broken"
            self.note("", None)
        except Over:
            self.status = "prefix"
        except Astray:
            self.status = "broken"

    def choose(self, options: Sequence, surface: Callable[..., str]):
        ways = [rank for rank, option in enumerate(options) if self.agrees(surface(option))]
        if not ways:
            raise Astray
        rank = ways[0] if len(ways) == 1 else next(self.turns, None)
        if rank is None:
            raise Fork(ways)
        self.bits += odds(len(options))[1][rank]
        return options[rank]

    def say(self, piece: str, recalled: str | None = None) -> None:
        if not self.agrees(piece, recalled):
            raise Astray
        self.at += len(piece)
        if self.at > len(self.text):
            raise Over
        self.pieces.append(piece)

    def agrees(self, piece: str, recalled: str | None = None) -> bool:
        """Whether the text goes on with this piece, or ends within it; if not, note where they part."""
        if self.text.startswith(piece, self.at) or piece.startswith(self.text[self.at :]):
            return True
        self.note(piece, recalled)
        return False

    def note(self, piece: str, recalled: str | None) -> None:
        right = 0
        for ours, theirs in zip(piece, self.text[self.at : self.at + len(piece)]):
            if ours != theirs:
                break
            right += 1
        if self.at + right > self.reach or not self.expected:
            self.reach, self.expected, self.recalled = self.at + right, set(), recalled
        if self.at + right == self.reach:
            self.expected.add(piece)


class Over(Exception):
    """The text has ended before the story."""


class Astray(Exception):
    """The text has left the story."""


class Fork(Exception):
    """The text allows several ways to go: their ranks."""

    def __init__(self, ways: list[int]):
        super().__init__(ways)
        self.ways = ways


def _no_chance() -> float:
    raise AssertionError("a reader draws nothing")


def _readers(plot: Plot, text: str) -> Iterator[Reader]:
    """Follow a text every way there is, depth first, and yield the reader at each end."""
    paths: list[tuple[int, ...]] = [()]
    while paths:
        path = paths.pop()
        reader = Reader(text, path)
        try:
            reader.follow(plot)
        except Fork as fork:
            paths.extend((*path, rank) for rank in reversed(fork.ways))
        else:
            yield reader
