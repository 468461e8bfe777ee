"""`data=tales_pairs`: pairs from the stories of `tales`, with an exactly known conditional entropy.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import fsum, log2
from pathlib import Path
from typing import Literal

from minllm.data.source import Pair, PairSource, Split
from minllm.data.tales import Tales
from minllm.data.tales.plots import tell_a_tale
from minllm.data.tales_pairs.beginnings import bits_of_rest, cut
from minllm.data.tales_pairs.facts import facts_of, lines, probability_of_facts, told
from minllm.schema.options import Count, Natural


@dataclass(frozen=True, kw_only=True)
class TalesPairs(PairSource, Tales):
    """Stories with a given part: the beginning, up to the end of one of the first sentences; or facts, a line each.

    given: what is given
    train_stories: how many stories to train on
    val_stories: how many stories to validate on
    first_seed: the seed of the first training story
    """

    given: Literal["beginning", "facts"] = "beginning"
    train_stories: Count = 20_000
    val_stories: Count = 256
    first_seed: Natural = 0

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.given.encode())
        for path in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(path.read_bytes())
        return f"{super().fingerprint}-{digest.hexdigest()[:16]}"

    def pairs(self, split: Split) -> Iterator[Pair]:
        """Yield the pairs of the split's stories."""
        return map(self.pair, self.seeds(split))

    def pair(self, seed: int) -> Pair:
        """Return the pair of a seed's story."""
        teller = told(tell_a_tale, seed)
        text = "".join(teller.pieces)
        return cut(text, seed) if self.given == "beginning" else Pair(lines(facts_of(teller)), text)

    def bits(self, seed: int) -> float:
        """Return the surprisal of a story's target in bits, with its given part known."""
        if self.given == "beginning":
            return bits_of_rest(tell_a_tale, self.pair(seed))
        teller = told(tell_a_tale, seed)
        return teller.bits + log2(probability_of_facts(tell_a_tale, facts_of(teller)))

    def floor_bits_per_byte(self) -> float:
        """The surprisal of the validation targets, each with its given part known, in bits per UTF-8 byte."""
        seeds = self.seeds("val")
        return fsum(map(self.bits, seeds)) / sum(len(self.pair(seed).target.encode()) for seed in seeds)
