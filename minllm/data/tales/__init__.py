"""The built-in corpus: small stories from a seeded grammar whose entropy is known exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from minllm.data.source import Source, Split
from minllm.data.tales.derive import Reading
from minllm.data.tales.derive import derivations as _derivations
from minllm.data.tales.derive import read as _read
from minllm.data.tales.language import Teller
from minllm.data.tales.plots import tell_a_tale
from minllm.errors import UserError
from minllm.schema.options import Count, Natural

__all__ = ["Reading", "Story", "Tales", "derivations", "read", "story"]

BYTES_OF_A_STORY = 772  # on average
VALIDATION_SEED = 1_000_000_000  # training seeds are below it, validation seeds begin with it


@dataclass(frozen=True, kw_only=True)
class Tales(Source):
    """Stories whose true entropy is known: a draw's bits count when it is made, and a draw always shows.

    The training stories are those of the seeds `first_seed`, `first_seed` + 1, …; the validation stories
    those from `VALIDATION_SEED` on, the same for every choice of training stories.

    train_stories: how many stories to train on
    val_stories: how many stories to validate on
    first_seed: the seed of the first training story
    """

    train_stories: Count = 40_000
    val_stories: Count = 256
    first_seed: Natural = 0

    def __post_init__(self) -> None:
        if self.first_seed + self.train_stories > VALIDATION_SEED:
            raise UserError(
                f"data.first_seed + data.train_stories is {self.first_seed + self.train_stories}, which runs into the"
                f" validation stories: choose a data.first_seed of {VALIDATION_SEED - self.train_stories} or less."
            )

    @property
    def fingerprint(self) -> str:
        """Depends on the options and on the text of the grammar itself, so an edit never meets an old store."""
        digest = hashlib.sha256(f"{self.train_stories} {self.val_stories} {self.first_seed}".encode())
        for path in sorted(Path(__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
        return f"tales-{digest.hexdigest()[:16]}"

    @property
    def terms(self) -> str:
        return "MIT"

    def size(self, split: Split) -> int:
        return BYTES_OF_A_STORY * len(self.seeds(split))

    def seeds(self, split: Split) -> range:
        """Return the seeds of a split; the two ranges never meet."""
        if split == "val":
            return range(VALIDATION_SEED, VALIDATION_SEED + self.val_stories)
        return range(self.first_seed, self.first_seed + self.train_stories)

    def stories(self, split: Split) -> Iterator[Story]:
        """Yield the split's stories with the bits of each."""
        return map(story, self.seeds(split))

    def documents(self, split: Split) -> Iterator[str]:
        """Yield the text of the split's stories."""
        return (tale.text for tale in self.stories(split))

    def floor_bits_per_byte(self) -> float:
        """The validation stories' surprisal under the grammar itself, in bits per UTF-8 byte of their text.

        It includes what the end of each story tells, so compare it with a loss that counts end-of-text.
        """
        stories = list(self.stories("val"))
        return sum(tale.bits for tale in stories) / sum(len(tale.text.encode()) for tale in stories)


@dataclass(frozen=True)
class Story:
    """A story, and its surprisal in bits: the grammar tells exactly this text with probability 2 ** -bits."""

    text: str
    bits: float


def story(seed: int) -> Story:
    """Tell the story of a seed, the same on every machine and Python."""
    teller = Teller(Random(seed).random)
    tell_a_tale(teller)
    return Story("".join(teller.pieces), teller.bits)


def derivations(text: str) -> list[float]:
    """Return the bits of every way in which the grammar could tell this text: one for a story, none else."""
    return _derivations(tell_a_tale, text)


def read(text: str) -> Reading:
    """Say whether a text, such as a model's sample, is a story, the beginning of one, or where it breaks."""
    return _read(tell_a_tale, text)
