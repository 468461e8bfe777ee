"""Everything that the grammar of `tales` could say at each place of a text, given the text before it.

A parse follows a text through the plots, as a `Reader` does, and records what is mentioned where. Unlike a reader, it
can begin with draws that are known already, so that a text is read on quickly after a correction.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import fsum

from minllm.data.tales.derive import Astray, Fork, Over, Reader
from minllm.data.tales.language import Role, odds
from minllm.data.tales.plots import tell_a_tale
from minllm.data.tales.thing import Kind, Thing

Rest = tuple[str, str | None]
"""What could come next, and its role if it is something to recall."""


def parses_of(ways: Continuations, paths: Iterable[Sequence[int]] = ((),)) -> list[Parse]:
    """Follow a text in every way, and add to `ways` all that it could have said instead.

    Args:
        paths: the ranks of the draws with which the parses begin.
    """
    parses, paths = [], list(paths)
    while paths:
        parse = Parse(ways, paths.pop())
        try:
            parse.follow(tell_a_tale)
        except Fork as fork:
            paths.extend((*parse.ranks, rank) for rank in reversed(fork.ways))
        else:
            parses.append(parse)
    return parses


@dataclass(frozen=True)
class Mention:
    """A mention of something that was mentioned before.

    surface: what is said, or would have to be
    offset: where it begins, in characters
    """

    role: str
    thing: Thing
    surface: str
    offset: int

    @property
    def end(self) -> int:
        return self.offset + len(self.surface)


class Continuations:
    """What could stand at every place of a text, given the text before it.

    pieces: what could stand at an offset, and its role if it is something to recall; for each, how many of its first
        characters do stand there
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces: dict[tuple[int, str, str | None], int] = {}

    def fits(self, offset: int, piece: str, role: str | None) -> bool:
        """Whether the text has a piece at an offset, or ends within it."""
        key = (offset, piece, role)
        if key not in self.pieces:
            self.pieces[key] = shared(piece, self.text, offset)
        right = self.pieces[key]
        return right == len(piece) or offset + right == len(self.text)

    def reach(self) -> int:
        """Return how many characters are right."""
        return max(offset + right for (offset, _, _), right in self.pieces.items())

    def expected(self) -> tuple[str, ...]:
        """Return the pieces that part from the text where it breaks; the empty one is the end of the story."""
        reach = self.reach()
        pieces = self.pieces.items()
        parting = (
            piece
            for (offset, piece, _), right in pieces
            if offset + right == reach and (right < len(piece) or not piece)
        )
        return tuple(sorted(set(parting)))

    def rests(self) -> dict[int, set[Rest]]:
        """Return all that could come next at each offset."""
        rests = defaultdict(set)
        for (offset, piece, role), right in self.pieces.items():
            for skipped in range(min(right + 1, len(piece))):
                rests[offset + skipped].add((piece[skipped:], role))
        return rests

    def corrected(self, text: str, offset: int) -> Continuations:
        """Return the ways of a text that is the same up to an offset, at which there is only one way."""
        ways = Continuations(text)
        ways.pieces = {key: right for key, right in self.pieces.items() if key[0] + right < offset}
        return ways


class Parse(Reader):
    """Follows a text through a plot.

    path: the ranks of the first draws; further ones are those that the text allows, if that is one at a time
    ranks: of all draws
    entropy: of the draws, in bits
    mentions: of things that were mentioned before, in their order; the last one may be where the text breaks or ends
    """

    def __init__(self, ways: Continuations, path: Sequence[int]) -> None:
        super().__init__(ways.text, ())
        self.ways, self.path = ways, path
        self.ranks: list[int] = []
        self.entropy = 0.0
        self.mentions: list[Mention] = []
        self.surfaces: dict[Thing, list[tuple[str, int]]] = defaultdict(
            list
        )  # of all mentions, with their ends

    def choose(self, options: Sequence, surface: Callable[..., str]):
        rank = self.path[n] if (n := len(self.ranks)) < len(self.path) else self.only(options, surface)
        self.ranks.append(rank)
        self.bits += odds(len(options))[1][rank]
        self.entropy += entropy(len(options))
        return options[rank]

    def only(self, options: Sequence, surface: Callable[..., str]) -> int:
        """Return the rank of the one option that the text allows; raise Fork if it allows several."""
        if self.at == len(self.text):
            self.ways.pieces[self.at, "?", None] = 0  # what is drawn, the text doesn't show
            raise Over
        ranks = [rank for rank, option in enumerate(options) if self.agrees(surface(option))]
        if not ranks:
            raise Astray
        if len(ranks) > 1:
            raise Fork(ranks)
        return ranks[0]

    def draw(self, kind: Kind, surface: Callable[[Thing], str]) -> Thing:
        thing = super().draw(kind, surface)
        self.surfaces[thing].append((surface(thing), self.at))
        return thing

    def say(self, piece: str, recalled: str | None = None) -> None:
        if recalled is None:
            return super().say(piece)
        thing = self.world[recalled]
        self.mentions.append(Mention(recalled, thing, piece, self.at))
        super().say(piece, recalled)
        self.surfaces[thing].append((piece, self.at))

    def agrees(self, piece: str, recalled: str | None = None) -> bool:
        return not piece or self.ways.fits(self.at, piece, recalled)

    def note(self, piece: str, recalled: str | None) -> None:
        self.ways.fits(self.at, piece, recalled)

    def previous(self, mention: Mention) -> int:
        """Return where the last mention ended from which this one follows."""
        kind, surface = self.kind_of(mention.role), mention.surface.casefold()
        return [
            end
            for earlier, end in self.surfaces[mention.thing]
            if end <= mention.offset and tells(kind, earlier.casefold(), surface)
        ][-1]

    def substitute(self, mention: Mention) -> str | None:
        """Return what the text has in the place of a mention, if it is the same form of another thing of its kind."""
        substitutes = []
        for form, word in mention.thing.forms.items():
            if word.casefold() != mention.surface.casefold():
                continue
            for thing in self.kind_of(mention.role):
                other = thing.forms[form]
                other = other if word == mention.surface else other[0].upper() + other[1:]
                end = mention.offset + len(other)
                if self.text.startswith(other, mention.offset) and not self.text[end : end + 1].isalpha():
                    substitutes.append(other)
        return max(substitutes, key=len, default=None)

    def kind_of(self, role: str) -> Kind:
        return Role(role, "", False).kind(self)


def shared(piece: str, text: str, offset: int) -> int:
    """Return how many of the first characters of a piece stand in a text at an offset."""
    if text.startswith(piece, offset):
        return len(piece)
    theirs = text[offset : offset + len(piece)]
    return next((n for n, (a, b) in enumerate(zip(piece, theirs)) if a != b), len(theirs))


@functools.cache
def entropy(n: int) -> float:
    """Return the entropy of a draw among n options, in bits."""
    return fsum(bits * 2**-bits for bits in odds(n)[1])


@functools.lru_cache(1 << 16)
def tells(kind: Kind, mention: str, surface: str) -> bool:
    """Whether a mention tells how another one must be: all things of the kind that it fits have that surface."""
    surfaces = [{form.casefold() for form in thing.forms.values()} for thing in kind]
    return all(surface in forms for forms in surfaces if mention in forms)
