"""What a story had to remember: where only what it had said before decided how it goes on, and whether it knew.

A recall counts where the grammar, given all of the text before it, allows one continuation only, which is a mention of
something that was mentioned before. Where it allows several, a text that says another of them is right, so that its
memory isn't tested there.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum, log2

from minllm.data.tales import Reading, read
from minllm.data.tales.derive import Fork
from minllm.data.tales.language import Role, odds
from minllm.data.tales.plots import tell_a_tale
from minllm.data.tales.thing import PRONOUNS, Kind, Thing
from minllm.data.tales_pairs.beginnings import Opening

ROLES = {
    # who it is, and of an animal, what it can do
    "names": ("animal", "elder", "friend", "helper", "hero", "rival"),
    # what belongs to whom: what a child owns, wears, swaps or is to get
    "owners": ("dress", "prize", "swap", "toy", "wrap"),
    # where it happens, lives or is hidden
    "places": ("corner", "home", "house", "nook", "place", "second", "spot", "view", "village"),
    # what was agreed beforehand: the day, and what is to be brought
    "promises": ("taste", "treat", "weekday"),
    # what everything else comes from: the storm, the noise in the night, the stone that someone fell over
    "causes": ("hindrance", "sound", "storm"),
    # what something is like, and what is looked for
    "things": ("charm", "colour", "cut", "dye", "mien", "season", "shade", "temper", "trait"),
}
"""The kinds of memory, and the roles of the stories that test each."""

KINDS = ("names", "pronouns", *tuple(ROLES)[1:])
"""All kinds of memory, in the order in which they are shown. Of a person or animal, a pronoun shows much less than a
name, and can be guessed, so it is a kind of its own."""

KIND_OF = {role: kind for kind, roles in ROLES.items() for role in roles}
PRONOUN_FORMS = tuple(PRONOUNS["she"])


@dataclass(frozen=True)
class Recall:
    """A place where a story had to recall something.

    kind: of memory, one of `KINDS`
    role: what had to be recalled, such as `hero`
    offset: in characters, where the mention begins
    told: where the last mention ended from which it follows; a pronoun doesn't tell a name
    is_right: whether the text recalls it
    """

    kind: str
    role: str
    offset: int
    told: int
    is_right: bool


@dataclass(frozen=True)
class Account:
    """A text as the grammar reads it.

    reading: whether it is a story, the beginning of one, or where it breaks
    recalls: all of the right part, and the one at which it breaks, in their order
    bits: the surprisal of the right part: the grammar begins a story so with probability 2 ** -bits
    expected_bits: what the surprisal of a text of the grammar's own is expected to be where its draws have as many
        options as in this text. For texts of the grammar, cut anywhere, `bits - expected_bits` has a mean of exactly 0
    """

    reading: Reading
    recalls: tuple[Recall, ...]
    bits: float
    expected_bits: float


def account_of(text: str) -> Account:
    """Read a text."""
    reading = read(text)
    ways = Ways(text[: reading.offset])
    witnesses = witnesses_of(ways)
    bits, expected_bits = surprisal(witnesses)
    return Account(reading, tuple(recalls(text, reading, witnesses[0], ways)), bits, expected_bits)


def surprisal(witnesses: Sequence[Witness]) -> tuple[float, float]:
    """Return the surprisal of a text, given all ways to tell it, and what it is expected to be.

    The entropy of the draws up to a point of the text is that of the text up to there, plus that of the draws given
    the text, where it doesn't show them yet.
    """
    probability = fsum(2**-witness.bits for witness in witnesses)
    shares = [2**-witness.bits / probability for witness in witnesses]
    entropy = fsum(share * witness.entropy for share, witness in zip(shares, witnesses))
    hidden = fsum(-share * log2(share) for share in shares)
    return -log2(probability), entropy - hidden


def recalls(text: str, reading: Reading, witness: Witness, ways: Ways) -> Iterator[Recall]:
    """Yield the recalls of a text; one that the text ends within is left out, unless it breaks there."""
    possible = ways.by_offset()
    for mention in witness.mentions:
        is_said = mention.end <= reading.offset
        if possible[mention.offset] == {(mention.surface, mention.role)} and (
            is_said or reading.status == "broken"
        ):
            is_longer = (
                reading.status == "broken" and text[mention.end : reading.offset + 1].isalpha()
            )  # Samir, not Sam
            yield Recall(
                mention.kind, mention.role, mention.offset, witness.told(mention), is_said and not is_longer
            )


@dataclass(frozen=True)
class Mention:
    """A mention of a role's thing.

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

    @property
    def kind(self) -> str:
        kind = KIND_OF[self.role]
        return "pronouns" if kind == "names" and is_pronoun(self.thing, self.surface) else kind


class Ways:
    """How a story could go on, at every place of a text, given the text before it.

    pieces: what may stand at an offset of the text, and with which role if that is recalled; for each, how many of its
        first characters do stand there
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces: dict[tuple[int, str, str | None], int] = {}

    def fit(self, offset: int, piece: str, role: str | None) -> bool:
        """Whether the text has a piece at an offset, or ends within it."""
        key = (offset, piece, role)
        if key not in self.pieces:
            self.pieces[key] = shared(piece, self.text, offset)
        right = self.pieces[key]
        return right == len(piece) or offset + right == len(self.text)

    def by_offset(self) -> dict[int, set[tuple[str, str | None]]]:
        """Return all that could come next at each offset."""
        ways = defaultdict(set)
        for (offset, piece, role), right in self.pieces.items():
            for skipped in range(min(right + 1, len(piece))):
                ways[offset + skipped].add((piece[skipped:], role))
        return ways


class Witness(Opening):
    """A reader that also keeps what it had to recall, and the entropy of its draws."""

    def __init__(self, ways: Ways, turns: Sequence[int]) -> None:
        super().__init__(ways.text, turns)
        self.ways = ways
        self.entropy = 0.0
        self.mentions: list[Mention] = []
        self.told_of: dict[Thing, list[tuple[str, int]]] = defaultdict(list)  # surfaces, and where they end

    def choose(self, options: Sequence, surface: Callable[..., str]):
        if self.at == len(self.text):
            self.ways.pieces[self.at, "?", None] = 0  # there is more than one way
        option = super().choose(options, surface)
        self.entropy += entropy(len(options))
        return option

    def draw(self, kind: Kind, surface: Callable[[Thing], str]) -> Thing:
        thing = super().draw(kind, surface)
        self.told_of[thing].append((surface(thing), self.at))
        return thing

    def say(self, piece: str, recalled: str | None = None) -> None:
        if recalled is None:
            super().say(piece)
            return
        thing = self.world[recalled]
        self.mentions.append(Mention(recalled, thing, piece, self.at))
        super().say(piece, recalled)
        self.told_of[thing].append((piece, self.at))

    def agrees(self, piece: str, recalled: str | None = None) -> bool:
        return self.ways.fit(self.at, piece, recalled)

    def told(self, recall: Mention) -> int:
        """Return where the last mention before a recall ended from which it follows."""
        kind = Role(recall.role, "", False).kind(self)
        ends = [
            end
            for surface, end in self.told_of[recall.thing]
            if end <= recall.offset and tells(kind, surface.casefold(), recall.surface.casefold())
        ]
        return ends[-1]


def witnesses_of(ways: Ways) -> list[Witness]:
    """Return all ways to tell a text with which a story may begin, and add to `ways` what else it could have said."""
    witnesses: list[Witness] = []
    paths: list[tuple[int, ...]] = [()]
    while paths:
        witness = Witness(ways, path := paths.pop())
        try:
            witness.follow(tell_a_tale)
        except Fork as fork:
            paths.extend((*path, rank) for rank in reversed(fork.ways))
        else:
            if witness.status != "broken":
                witnesses.append(witness)
    return witnesses


def shared(piece: str, text: str, offset: int) -> int:
    """Return how many characters of a piece stand in a text at an offset."""
    if text.startswith(piece, offset):
        return len(piece)
    return next(
        (
            n
            for n, (ours, theirs) in enumerate(zip(piece, text[offset : offset + len(piece)]))
            if ours != theirs
        ),
        min(len(piece), len(text) - offset),
    )


@functools.cache
def entropy(n: int) -> float:
    """Return the entropy of a draw among n options, in bits."""
    return fsum(bits * 2**-bits for bits in odds(n)[1])


@functools.lru_cache(1 << 16)
def tells(kind: Kind, mention: str, surface: str) -> bool:
    """Whether a mention tells how another one must be: all things of the kind that it fits have that surface."""
    surfaces = [{form.casefold() for form in thing.forms.values()} for thing in kind]
    return all(surface in forms for forms in surfaces if mention in forms)


@functools.cache
def is_pronoun(thing: Thing, surface: str) -> bool:
    return surface.casefold() in {thing.forms.get(form) for form in PRONOUN_FORMS}
