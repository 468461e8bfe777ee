"""What a story had to remember: where only what it had said before decided how it goes on, and whether it knew.

A recall counts where the grammar, given all of the text before it, allows one continuation only, which is a mention of
something that was mentioned before. Where it allows several, a text that says another of them is right, so that its
memory isn't tested there.

After a wrong recall the text is read on as if it had been right, since a forgotten name says nothing about the memory
of the place. What was forgotten itself isn't asked for again: the text then says both.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, log2

from minllm.data.tales import Reading
from minllm.data.tales.thing import PRONOUNS, Thing
from minllm.grading.parsing import Continuations, Mention, Parse, Rest, parses_of

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
    previous: where the last mention ended from which it follows; a pronoun doesn't tell a name
    is_right: whether the text recalls it
    """

    kind: str
    role: str
    offset: int
    previous: int
    is_right: bool


@dataclass(frozen=True)
class Analysis:
    """A text as the grammar reads it.

    reading: whether it is a story, the beginning of one, or where it breaks
    recalls: all that its memory was tested by, in their order, until something else than a recall is wrong
    bits: the surprisal of the right part: the grammar begins a story so with probability 2 ** -bits
    expected_bits: what the surprisal of a text of the grammar's own is expected to be where its draws have as many
        options as in this text. For texts of the grammar, cut anywhere, `bits - expected_bits` has a mean of exactly 0
    """

    reading: Reading
    recalls: tuple[Recall, ...]
    bits: float
    expected_bits: float


def analyse(text: str) -> Analysis:
    """Read a text."""
    ways = Continuations(text)
    parses = parses_of(ways)
    reading = reading_of(ways, parses)
    if reading.status == "broken":
        bits, expected_bits = surprisal(parses_of(Continuations(text[: reading.offset])))
    else:
        bits, expected_bits = surprisal(parses)
    recalls = tuple(until_forgotten(corrected(ways, parses).recalls()))
    wrong = [recall.role for recall in recalls if not recall.is_right]
    if wrong:
        reading = replace(reading, recalled=wrong[0])
    return Analysis(reading, recalls, bits, expected_bits)


def reading_of(ways: Continuations, parses: Sequence[Parse]) -> Reading:
    statuses = {parse.status for parse in parses}
    if statuses == {"broken"}:
        return Reading("broken", ways.reach(), ways.expected())
    return Reading("complete" if "complete" in statuses else "prefix", len(ways.text))


def surprisal(parses: Sequence[Parse]) -> tuple[float, float]:
    """Return the surprisal of a text, given all ways to tell it, and what it is expected to be.

    The entropy of the draws up to a point of the text is that of the text up to there, plus that of the draws given
    the text, where it doesn't show them yet.
    """
    parses = [parse for parse in parses if parse.status != "broken"]
    probability = fsum(2**-parse.bits for parse in parses)
    shares = [2**-parse.bits / probability for parse in parses]
    entropy = fsum(share * parse.entropy for share, parse in zip(shares, parses))
    hidden = fsum(-share * log2(share) for share in shares)
    return -log2(probability), entropy - hidden


def corrected(ways: Continuations, parses: Sequence[Parse]) -> Corrected:
    """Correct the wrong recalls of a text, one after the other, until it breaks in another way or ends."""
    text = Corrected(ways, parses)
    while (further := text.next()) is not None:
        text = further
    return text


def until_forgotten(recalls: Iterable[Recall]) -> Iterator[Recall]:
    """Yield the recalls of each role up to the first that is wrong."""
    forgotten = set()
    for recall in recalls:
        if recall.role not in forgotten:
            yield recall
        if not recall.is_right:
            forgotten.add(recall.role)


@dataclass(frozen=True)
class Corrected:
    """A text after some corrections, parsed in every way.

    removed: for the offset of each corrected mention, by how many characters it was longer than what it had to be
    """

    ways: Continuations
    parses: Sequence[Parse]
    removed: Mapping[int, int] = field(default_factory=dict)

    def next(self) -> Corrected | None:
        """Correct the mention at which the text breaks; None if it doesn't break at one that it had to recall."""
        rests = self.ways.rests()
        parses = [parse for parse in self.best if self.ends_wrong(parse, rests)]
        if not parses or (substitute := parses[0].substitute(mention := parses[0].mentions[-1])) is None:
            return None
        text = self.ways.text
        text = text[: mention.offset] + mention.surface + text[mention.offset + len(substitute) :]
        ways = self.ways.corrected(text, mention.offset)
        paths = {tuple(parse.ranks) for parse in parses}
        removed = {**self.removed, mention.offset: len(substitute) - len(mention.surface)}
        return Corrected(ways, parses_of(ways, paths), removed)

    def recalls(self) -> Iterator[Recall]:
        """Yield the recalls, at their offsets in the text before its corrections."""
        parse, rests = self.best[0], self.ways.rests()
        for mention in parse.mentions:
            if rests[mention.offset] != {(mention.surface, mention.role)}:
                continue
            is_said = mention.end <= self.reach
            if not is_said and parse.status != "broken":
                continue  # the text ends within it
            yield Recall(
                kind_of(mention),
                mention.role,
                self.before(mention.offset),
                self.before(parse.previous(mention)),
                is_said and mention.offset not in self.removed and not self.is_longer(parse, mention),
            )

    @functools.cached_property
    def reach(self) -> int:
        """The characters that are right."""
        return self.ways.reach()

    @functools.cached_property
    def best(self) -> list[Parse]:
        """The parses that go on to the end of the text or, if none does, as far as any."""
        if going_on := [parse for parse in self.parses if parse.status != "broken"]:
            return going_on
        ends = {offset for (offset, _, _), right in self.ways.pieces.items() if offset + right == self.reach}
        # none if a phrase that is right up to there was ruled out by a shorter one that is right as a whole
        reaching = [parse for parse in self.parses if parse.at in ends]
        return reaching or [max(self.parses, key=lambda parse: parse.at)]

    def ends_wrong(self, parse: Parse, rests: Mapping[int, set[Rest]]) -> bool:
        """Whether a parse ends where the text has something else than what it had to recall."""
        if parse.status != "broken" or not parse.mentions:
            return False
        mention = parse.mentions[-1]
        return parse.at == mention.offset and rests[mention.offset] == {(mention.surface, mention.role)}

    def is_longer(self, parse: Parse, mention: Mention) -> bool:
        """Whether the text has a longer name than it had to recall, such as Samir instead of Sam."""
        return mention.end == self.reach and len(parse.substitute(mention) or "") > len(mention.surface)

    def before(self, offset: int) -> int:
        """Return where an offset was before the corrections."""
        return offset + sum(longer for at, longer in self.removed.items() if at < offset)


def kind_of(mention: Mention) -> str:
    kind = KIND_OF[mention.role]
    return "pronouns" if kind == "names" and is_pronoun(mention.thing, mention.surface) else kind


@functools.cache
def is_pronoun(thing: Thing, surface: str) -> bool:
    return surface.casefold() in {thing.forms.get(form) for form in PRONOUN_FORMS}
