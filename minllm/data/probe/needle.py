"""`data=probe/needle`: a fact that is asked for after many words of `tales`.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import functools
import re
from dataclasses import dataclass

from minllm.data.probe import Example, Probe, Symbols
from minllm.data.probe.draw import Draw
from minllm.data.source import Split
from minllm.data.tales import VALIDATION_SEED, Tales, story
from minllm.errors import UserError
from minllm.schema.options import Count

WORD = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")
NAMES = WORD.findall("Ada Ben Cleo Dan Eve Finn Gus Hana Ivo Jill Kai Lena Max Nina Omar Pia")
SECRETS = WORD.findall("""
    acorn anchor arrow basket bell bottle bridge broom button candle carpet castle cherry clock compass copper crown
    diamond drum feather fiddle flute garlic ginger goblet hammer harbor honey island ivory jacket jungle
""")


@dataclass(frozen=True, kw_only=True)
class Needle(Probe):
    """Facts, then words of stories, then a question about one of the facts.

    The symbols are words and marks. Training and validation read different stories.

    facts: how many facts stand at the beginning, each about another name
    min_distance, max_distance: how many words of stories follow them
    val_distance: how many in validation, also more than in training; null: as in training
    stories: how many stories the words of training are from
    """

    facts: Count = 1
    min_distance: Count = 64
    max_distance: Count = 512
    val_distance: Count | None = None
    stories: Count = 500

    def check_options(self) -> None:
        if self.min_distance > self.max_distance:
            raise UserError(
                f"data.min_distance={self.min_distance} is greater than data.max_distance={self.max_distance}."
            )
        if self.facts > len(NAMES):
            raise UserError(
                f"data.facts={self.facts} is more than the {len(NAMES)} names that facts are about."
            )

    @functools.cached_property
    def texts(self) -> dict[Split, list[str]]:
        """The words of the stories, one after the other."""
        first = {"train": self.first_seed, "val": VALIDATION_SEED}
        return {
            split: [word for n in range(self.stories) for word in WORD.findall(story(seed + n).text)]
            for split, seed in first.items()
        }

    @functools.cached_property
    def symbols(self) -> Symbols:
        asked = [*fact("", ""), *question("")]
        words = {*self.texts["train"], *self.texts["val"], *NAMES, *SECRETS, *asked}
        return sorted(words - {""})

    @functools.cached_property
    def fingerprint(self) -> str:
        """Depends on the stories' grammar too."""
        return f"{super().fingerprint}-{Tales().fingerprint}"

    @property
    def longest(self) -> int:
        distance = max(self.max_distance, self.val_distance or 0)
        return self.facts * len(fact("", "")) + distance + len(question("")) + 1

    def example(self, draw: Draw, split: Split) -> Example:
        distance = draw.between(self.min_distance, self.max_distance)
        if split == "val":
            distance = self.val_distance or distance
        names = draw.distinct(NAMES, self.facts)
        told = [symbol for name in names for symbol in fact(name, draw.one(SECRETS))]
        text = self.texts[split]
        start = draw.below(len(text))
        between = [text[(start + n) % len(text)] for n in range(distance)]
        given = [*told, *between, *question(draw.one(names))]
        return [given, self.answer(given)]

    def answer(self, before: Symbols) -> Symbols:
        """The secret in the fact about the name that is asked for."""
        name, size = before[-2], len(fact("", ""))
        facts = (before[size * n : size * (n + 1)] for n in range(self.facts))
        return next([found[-2]] for found in facts if list(found) == fact(name, found[-2]))


def fact(name: str, secret: str) -> list[str]:
    return ["The", "secret", "word", "of", name, "is", secret, "."]


def question(name: str) -> list[str]:
    return ["What", "is", "the", "secret", "word", "of", name, "?"]
