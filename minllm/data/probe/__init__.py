"""`data=probe/…`: small tasks with known answers, which show what a model can and can't do.

A probe is a subclass of `Probe` and a YAML file in `conf/data/probe`. Its documents are made of symbols, each of which
is a token of `tokenizer=symbols`; some of the symbols are answers, and these alone count.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import functools
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from minllm.data.probe.draw import Draw
from minllm.data.source import Packing, Pair, PairSource, Parts, Source, Split
from minllm.data.text import is_held_out
from minllm.errors import UserError
from minllm.schema.options import Count, Natural

if TYPE_CHECKING:
    from minllm.tokenizer import Tokenizer

Symbols = Sequence[str]
Example = Sequence[Symbols]
"""A document in parts, an even number: given, answer, given, answer, and so on."""

HELD_OUT = 0.2  # share of all examples that are only validated on
TRIES = 1000  # draws for each example wanted, after which there are too few


@dataclass(frozen=True, kw_only=True)
class Probe(PairSource):
    """A task whose right answers are known. A subclass adds `symbols`, `longest`, `example`, `answer`, and its options.

    Examples are drawn at random. A hash of what is given decides whether an example is held out, so that none is both
    trained and validated on. Validation examples are distinct; training examples may repeat.

    train_examples: how many examples to train on
    val_examples: how many examples to validate on
    first_seed: the seed that the examples are drawn with
    """

    train_examples: Count = 20_000
    val_examples: Count = 200
    first_seed: Natural = 0
    packing: Packing = "pad"

    hides_answers: ClassVar[bool] = False
    """Whether answers are only predicted, and aren't read afterwards; each must be a single symbol then."""
    ceiling: ClassVar[float] = 1.0
    """The best possible accuracy."""

    def __post_init__(self) -> None:
        self.check_options()
        if self.packing == "concat":
            raise UserError(
                "data.packing=concat would cut examples: choose data.packing=pad or data.packing=pack."
            )
        if self.longest > self.seq_len:
            raise UserError(
                f"data.seq_len={self.seq_len} is too short for examples of up to {self.longest} tokens: type"
                f" data.seq_len={self.longest}."
            )

    # ---- what a probe defines -------------------------------------------------------------------

    def check_options(self) -> None:
        """Raise `UserError` if the options don't go together."""

    @property
    def symbols(self) -> Symbols:
        """All symbols, each a text without white space; the vocabulary of `tokenizer=symbols`."""
        raise NotImplementedError

    @property
    def longest(self) -> int:
        """The number of symbols of the longest example; of one that hides its answers, those that are given, plus 1."""
        raise NotImplementedError

    def example(self, draw: Draw, split: Split) -> Example:
        """Draw an example, which ends with an answer."""
        raise NotImplementedError

    def answer(self, before: Symbols) -> Symbols:
        """Solve an example: return the answer that follows these symbols, computed from them alone.

        Earlier answers are among them, unless they are hidden.
        """
        raise NotImplementedError

    def is_right(self, before: Symbols, answer: Symbols) -> bool:
        """Whether an answer is right; a probe defines this if several answers may be."""
        return list(answer) == list(self.answer(before))

    def key(self, example: Example) -> Symbols:
        """Return what decides to which split an example belongs: what is given, so that no question is in both."""
        return [symbol for part in example[::2] for symbol in part]

    @property
    def has_unique_answers(self) -> bool:
        """Whether an answer is right only if it is the one that is learned."""
        return type(self).is_right is Probe.is_right

    @property
    def learns_all(self) -> bool:
        """Whether training counts all symbols; validation counts answers alone."""
        return False

    # ---- what follows from it -------------------------------------------------------------------

    @functools.cached_property
    def chance(self) -> float:
        """The accuracy of the best constant guess: the share of the most frequent symbol of the validation answers."""
        answers = Counter(
            symbol for example in self.examples("val") for answer in example[1::2] for symbol in answer
        )
        return max(answers.values()) / sum(answers.values())

    def floor_bits_per_byte(self) -> float | None:
        """0, because answers are certain; a probe whose answers aren't says otherwise."""
        return 0.0

    @functools.cached_property
    def fingerprint(self) -> str:
        """Depends on the options, and on the code of probes."""
        kinds = [kind for kind in type(self).__mro__ if issubclass(kind, Probe)]
        files = {Path(inspect.getfile(kind)) for kind in kinds} | {*Path(__file__).parent.glob("*.py")}
        code = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
        of_rows = {option.name for option in fields(Source)}
        options = {
            option.name: getattr(self, option.name) for option in fields(self) if option.name not in of_rows
        }
        known = json.dumps([type(self).__qualname__, options, code], sort_keys=True)
        return hashlib.sha256(known.encode()).hexdigest()

    @property
    def terms(self) -> str:
        return "MIT"

    def check_tokenizer(self, tokenizer: "Tokenizer") -> None:
        """Raise `UserError` unless each symbol is one token."""
        texts = [written([symbol]) for symbol in self.symbols]
        for symbol, ids in zip(self.symbols, tokenizer.encode_batch(texts)):
            if len(ids) != 1:
                raise UserError(
                    f"Answers of probes are counted by symbols, but the tokenizer makes {len(ids)} tokens of"
                    f" '{symbol}': add tokenizer=symbols."
                )

    def examples(self, split: Split) -> Iterator[Example]:
        """Yield the split's examples. UserError if there are too few different ones."""
        count = self.val_examples if split == "val" else self.train_examples
        made = 0
        for example in islice(self.drawn(split, TRIES * count), count):
            made += 1
            yield example
        if made < count:
            raise UserError(
                f"There are too few different examples for data.{split}_examples={count}: only {made} were found."
                " Make them longer, or ask for fewer."
            )

    def drawn(self, split: Split, tries: int) -> Iterator[Example]:
        """Yield the examples among so many draws that belong to a split, those of validation once each."""
        draw, seen = Draw(f"{type(self).__name__} {split} {self.first_seed}"), set()
        for _ in range(tries):
            example = self.example(draw, split)
            given = written(self.key(example))
            if is_held_out(given, "data.first_seed", HELD_OUT) == (split == "val") and given not in seen:
                if split == "val":
                    seen.add(given)
                yield example

    def parts(self, split: Split) -> Iterator[Parts]:
        for example in self.examples(split):
            if split == "train" and self.learns_all:
                yield "", "".join(map(written, example))
            else:
                yield tuple(map(written, example))

    def pairs(self, split: Split) -> Iterator[Pair]:
        """Yield the text before the last answer of each example, as a model reads it, and this answer."""
        for example in self.examples(split):
            before = example[:-1:2] if self.hides_answers else example[:-1]
            yield Pair("".join(map(written, before)), written(example[-1]))


def written(symbols: Symbols) -> str:
    """Return the text of symbols: a space follows each."""
    return "".join(f"{symbol} " for symbol in symbols)
