"""A story's facts, and their exact probability: that of all stories with the same facts.

Which facts a story has is decided by its plot, its branches and some of its draws. All else is summed over: a phrase
without a fact doesn't matter, and neither does what is drawn besides, except that nothing is drawn twice. So a draw
from a kind that a fact is still to be drawn from matters only by how many likelier things it leaves before that fact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import fsum
from random import Random

from minllm.data.tales.cast import CAST, KINDS
from minllm.data.tales.derive import Plot
from minllm.data.tales.language import Blank, Options, Part, Phrase, Role, Teller, odds, parse
from minllm.data.tales.thing import Kind

ROLES = ("hero", "friend", "rival", "elder", "helper", "animal", "toy", "place", "village", "weekday")
"""The roles whose names are facts, in the order of their lines; each story has some of them."""


def facts_of(teller: Teller) -> dict[str, str]:
    """Return the facts of a story that has been told: the name of whatever fills each role."""
    return {role: teller.world[role].forms[""] for role in ROLES if role in teller.world}


def lines(facts: Mapping[str, str]) -> str:
    """Return facts as text, followed by an empty line."""
    return "".join(f"{role}: {name}\n" for role, name in facts.items()) + "\n"


def told(plot: Plot, seed: int) -> Teller:
    """Return the teller of a seed's story, which knows its text, its bits and its world."""
    teller = Teller(Random(seed).random)
    plot(teller)
    return teller


def probability_of_facts(plot: Plot, facts: Mapping[str, str], roles: Sequence[str] = ROLES) -> float:
    """Return the probability that a story has exactly these facts, of all those that are named by `roles`."""
    total, paths = [], [()]
    while paths:
        telling = Telling(facts, roles, path := paths.pop())
        try:
            plot(telling)
        except Fork as fork:
            paths.extend((*path, way) for way in range(fork.ways))
        except Otherwise:
            continue
        else:
            if telling.is_complete:
                total.append(telling.probability)
    return fsum(total)


class Fork(Exception):
    """A story with these facts may go on in several ways that matter."""

    def __init__(self, ways: int):
        super().__init__(ways)
        self.ways = ways


class Otherwise(Exception):
    """A story that went this way has other facts."""


class Telling(Teller):
    """Goes through a plot by its facts, without words; `turns` are the ways to go where several matter.

    probability: of all stories that go this way
    """

    def __init__(self, facts: Mapping[str, str], roles: Sequence[str], turns: Sequence[int]):
        super().__init__(random=_no_chance)
        assert all("." not in CAST[role] for role in roles), (
            "a fact is drawn from a kind that all stories share"
        )
        self.facts, self.roles, self.turns = facts, roles, iter(turns)
        self.mentioned: set[str] = set()
        self.probability = 1.0

    @property
    def is_complete(self) -> bool:
        return self.mentioned >= set(self.facts)

    def __call__(self, paragraph: str) -> None:
        self.tell(parse(paragraph))

    def one_of(self, *scenes: Callable[[Teller], None]) -> None:
        self.go([(share, scene) for share, scene in zip(shares(len(scenes)), scenes)])(self)

    def tell(self, phrase: Phrase) -> None:
        for part in phrase:
            if isinstance(part, Options):
                self.tell_one(part)
            elif isinstance(part, Role):
                self.mention(part.name)
            elif isinstance(part, Blank):
                self.draw_unknown(KINDS[part.name])

    def tell_one(self, options: Options) -> None:
        """Tell one of the phrases; those that don't matter are one way, in which nothing is told."""
        ways: list[tuple[float, Phrase]] = []
        for share, phrase in zip(shares(len(options.phrases)), options.phrases):
            if self.matters(phrase):
                ways.append((share, phrase))
        if len(ways) < len(options.phrases):
            ways.append((1 - fsum(share for share, _ in ways), ()))
        self.tell(self.go(ways))

    def matters(self, phrase: Phrase) -> bool:
        """Whether a phrase may have a fact, or a draw from a kind that a fact is still to be drawn from."""
        return any(map(self.may_matter, phrase))

    def may_matter(self, part: Part) -> bool:
        if isinstance(part, Options):
            return any(map(self.matters, part.phrases))
        if isinstance(part, Role):
            is_fact = part.name in self.roles
            return part.name not in self.mentioned and (
                is_fact or self.is_awaited(KINDS.get(CAST[part.name]))
            )
        return isinstance(part, Blank) and self.is_awaited(KINDS[part.name])

    def mention(self, role: str) -> None:
        if role in self.mentioned:
            return
        self.mentioned.add(role)
        kind = KINDS.get(CAST[role])  # None for a part of another role, which is never a fact
        if role in self.roles:
            self.draw_fact(role)
        elif kind is not None:
            self.draw_unknown(kind)

    def draw_fact(self, role: str) -> None:
        kind = KINDS[CAST[role]]
        left = self.untold.get(id(kind), kind)
        ranks = [rank for rank, thing in enumerate(left) if thing.forms[""] == self.facts.get(role)]
        if not ranks:
            raise Otherwise
        self.take(kind, ranks[0], ranks[0] + 1)

    def draw_unknown(self, kind: Kind) -> None:
        """Draw anything but the facts that are still to be drawn from this kind."""
        if not self.is_awaited(kind):
            return
        left, names = self.untold.get(id(kind), kind), set(self.awaited(kind))
        facts = [rank for rank, thing in enumerate(left) if thing.forms[""] in names]
        between = [(low + 1, high) for low, high in zip([-1, *facts], [*facts, len(left)]) if low + 1 < high]
        if not between:
            raise Otherwise
        self.take(kind, *self.go([(1.0, bounds) for bounds in between]))

    def take(self, kind: Kind, low: int, high: int) -> None:
        """Draw one of the things that are left with a rank from `low` to `high` (exclusive)."""
        left = self.untold.get(id(kind), kind)
        self.probability *= fsum(shares(len(left))[low:high])
        self.untold[id(kind)] = left[:low] + left[low + 1 :]

    def is_awaited(self, kind: Kind | None) -> bool:
        return kind is not None and any(True for _ in self.awaited(kind))

    def awaited(self, kind: Kind) -> Iterator[str]:
        """Yield the facts that are still to be drawn from a kind."""
        return (
            name
            for role, name in self.facts.items()
            if role not in self.mentioned and KINDS[CAST[role]] is kind
        )

    def go(self, ways: Sequence[tuple[float, object]]):
        """Take one of several ways, each with its probability."""
        way = 0 if len(ways) == 1 else next(self.turns, None)
        if way is None:
            raise Fork(len(ways))
        self.probability *= ways[way][0]
        return ways[way][1]


def shares(n: int) -> list[float]:
    """Return the probabilities of n options by rank."""
    return [2**-bits for bits in odds(n)[1]]


def _no_chance() -> float:
    raise AssertionError("nothing is drawn at random")
