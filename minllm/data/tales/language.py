"""The little language in which plots are written, and the teller that speaks it.

    {toy}           the story's toy: drawn at its first mention, remembered ever after
    {hero.he}       another form of a remembered thing: here the pronoun that goes with the name
    {a toy} {Toy}   with its article; with a capital
    <food>          a word drawn for this place alone; `<a food>` and `<Food>` as above
    [ran|walked]    one of several phrases, each of which may hold any of these signs

Everything is drawn from left to right, at the moment when it shows in the text, so that a draw which the reader
can't see is impossible. Order is likelihood: of n options, the one of rank r = 0, 1, … has a weight of
1 / (r + 10). Nothing is drawn twice in one story: two people never share a name.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import log2

from minllm.data.tales.cast import CAST, KINDS
from minllm.data.tales.thing import Kind, Thing


class Teller:
    """Tells one story, piece by piece, and keeps what it has said, what is true in its world, and the bits."""

    def __init__(self, random: Callable[[], float]):
        self.random = random
        self.world: dict[str, Thing] = {}
        self.untold: dict[int, Kind] = {}  # by the id of a kind: what is left of it once some has been told
        self.pieces: list[str] = []
        self.bits = 0.0

    def __call__(self, paragraph: str) -> None:
        """Tell a paragraph written in the little language."""
        if self.pieces:
            self.say("\n\n")
        for part in parse(paragraph):
            part.tell(self)

    def one_of(self, *scenes: Callable[[Teller], None]) -> None:
        """Go on with one of several scenes, whose first words must tell them apart."""
        self.choose(scenes, _unseen)(self)

    def draw(self, kind: Kind, surface: Callable[[Thing], str]) -> Thing:
        """Draw a thing of a kind that this story has not told of yet, and say it."""
        left = self.untold.get(id(kind), kind)
        thing = self.choose(left, surface)
        rank = left.index(thing)
        self.untold[id(kind)] = left[:rank] + left[rank + 1 :]
        self.say(surface(thing))
        return thing

    def choose(self, options: Sequence, surface: Callable[..., str]):
        """Draw one of the options by rank; `surface(option)` begins what will be said next because of it."""
        cumulative, bits = odds(len(options))
        rank = bisect_right(cumulative, self.random())
        self.bits += bits[rank]
        return options[rank]

    def say(self, piece: str, recalled: str | None = None) -> None:
        """Add a piece of text; `recalled` names the role when the world has fixed it beforehand."""
        self.pieces.append(piece)


@cache
def odds(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the cumulative probabilities of n options by rank, and the bits of each."""
    weights = [1 / (rank + 10) for rank in range(n)]
    total = sum(weights)
    cumulative = [running / total for running in accumulate(weights)]
    return (*cumulative[:-1], 1.0), tuple(log2(total / weight) for weight in weights)


def _unseen(option) -> str:
    """The surface of an option that nothing is known of before it is tried."""
    return ""


@dataclass(frozen=True)
class Words:
    """Plain text."""

    text: str

    def tell(self, teller: Teller) -> None:
        teller.say(self.text)

    def head(self, teller: Teller) -> str:
        return self.text


@dataclass(frozen=True)
class Blank:
    """A `<kind>` to be filled afresh; also says in which form a thing is to be shown."""

    name: str
    form: str
    capital: bool

    def surface(self, thing: Thing) -> str:
        text = thing.forms[self.form]
        return text[0].upper() + text[1:] if self.capital else text

    def tell(self, teller: Teller) -> None:
        teller.draw(KINDS[self.name], self.surface)

    def head(self, teller: Teller) -> str:
        return ""


class Role(Blank):
    """A `{role}`: the first mention draws who or what fills it, every later one recalls it for 0 bits."""

    def tell(self, teller: Teller) -> None:
        thing = teller.world.get(self.name)
        if thing is None:
            teller.world[self.name] = teller.draw(self.kind(teller), self.surface)
        else:
            teller.say(self.surface(thing), self.name)

    def kind(self, teller: Teller) -> Kind:
        owner, _, part = CAST[self.name].partition(".")
        return teller.world[owner].parts[part] if part else KINDS[owner]

    def head(self, teller: Teller) -> str:
        return self.surface(teller.world[self.name]) if self.name in teller.world else ""


@dataclass(frozen=True)
class Options:
    """`[this|that]`: one of several phrases."""

    phrases: tuple[Phrase, ...]

    def tell(self, teller: Teller) -> None:
        for part in teller.choose(self.phrases, lambda phrase: phrase[0].head(teller) if phrase else ""):
            part.tell(teller)

    def head(self, teller: Teller) -> str:
        return ""


Part = Words | Blank | Role | Options
Phrase = tuple[Part, ...]

SIGN = re.compile(r"[\[\]|]|\{[^}]*\}|<[^>]*>")
NAME = re.compile(r"(?:([aA]) )?(\w+)(?:\.(\w+))?")


@cache
def parse(paragraph: str) -> Phrase:
    """Parse the little language; a line break next to `[`, `|` or `]` is layout, any other is a space."""
    text = re.sub(r"(\[)\s*\n\s*|\s*\n\s*(?:(\|) *|(\]))", r"\1\2\3", paragraph.strip())
    text = re.sub(r"\s+", " ", text)
    signs = re.findall(rf"{SIGN.pattern}|[^\[\]|{{<]+", text)
    phrases, rest = _phrases(signs, 0)
    assert rest == len(signs) and len(phrases) == 1, f"a bracket too many, or a bar outside brackets: {text}"
    return phrases[0]


def _phrases(signs: list[str], at: int) -> tuple[tuple[Phrase, ...], int]:
    """Parse phrases with bars between them up to the bracket that closes them, and return where it stands."""
    phrases: list[list[Part]] = [[]]
    while at < len(signs) and signs[at] != "]":
        sign = signs[at]
        if sign == "|":
            phrases.append([])
        elif sign == "[":
            inner, at = _phrases(signs, at + 1)
            assert len(set(inner)) == len(inner) > 1, (
                f"one phrase alone, or one twice, before {signs[at : at + 3]}"
            )
            phrases[-1].append(Options(inner))
        else:
            phrases[-1].append(_part(sign))
        at += 1
    return tuple(map(tuple, phrases)), at


def _part(sign: str) -> Part:
    if sign[0] not in "{<":
        return Words(sign)
    match = NAME.fullmatch(sign[1:-1])
    assert match, f"not a sign of the little language: {sign}"
    article, name, form = match.groups()
    capital = article == "A" or (not article and name[0].isupper())
    blank = (Role if sign[0] == "{" else Blank)(name.lower(), form or ("a" if article else ""), capital)
    assert blank.name in (CAST if isinstance(blank, Role) else KINDS), f"nothing is named {sign}"
    return blank
