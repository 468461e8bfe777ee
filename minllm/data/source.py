"""The base class of every corpus: documents in two splits, a fingerprint, and options for packing them into rows.

This module's annotations are real objects, not strings: a source in another module inherits the options, and
`minllm.config.compose.validate` reads their types there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from minllm.errors import UserError
from minllm.schema.foreign_runs import refuse_foreign
from minllm.schema.options import Count, Place

if TYPE_CHECKING:
    from minllm.tokenizer import Tokenizer

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
SPLIT_NAMES: dict[Split, str] = {"train": "training", "val": "validation"}
Packing = Literal["concat", "pad", "pack"]
PACKINGS: tuple[Packing, ...] = ("concat", "pad", "pack")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A corpus. A subclass adds `documents`, `fingerprint`, and its own options as fields.

    Its fields are the keys allowed under `data:` in a YAML file; those below apply to every source.

    seq_len: tokens in a row of a training batch, and the longest window of evaluation
    packing: how documents become rows: `concat` cuts the concatenated documents into windows (fastest), `pad` gives
        each document rows of its own, `pack` fits several whole documents into a row, each of which attends only to
        itself
    truncate: for `pad` and `pack`: keep only the beginning of a document longer than a row, instead of splitting it
    stride: how many tokens evaluation windows advance by in a document longer than one; null: half of `seq_len`
    max_tokens: use only the first training documents, up to this many tokens in total; null: all
    num_proc: how many processes encode; null: one per CPU
    cache: the folder for the tokens of encoded corpora; safe to delete
    """

    seq_len: Count = 256
    packing: Packing = "concat"
    truncate: bool = False
    stride: Count | None = None
    max_tokens: Count | None = None
    num_proc: Count | None = None
    cache: Place = ".cache/stores"

    @property
    def fingerprint(self) -> str:
        """A string that changes whenever a document of either split does; computed before every run.

        It must not depend on the options above, which only affect how the documents are processed.
        """
        raise NotImplementedError

    @property
    def terms(self) -> str:
        """The licence of the text, recorded in the metadata of tokenizers trained on it."""
        return "not said"

    def check(self) -> None:
        """Raise `UserError` early if the documents aren't available, which `documents` may find out late."""

    def documents(self, split: Split) -> Iterator[str]:
        """Yield the split's documents, none of them empty, always in the same order."""
        raise NotImplementedError

    def size(self, split: Split) -> int | None:
        """Approximate size of the split's text in bytes, for a progress bar; None if unknown."""
        return None

    def check_tokenizer(self, tokenizer: "Tokenizer") -> None:
        """Raise `UserError` if the documents can't be learned with this tokenizer."""

    def floor_bits_per_byte(self) -> float | None:
        """The true entropy of the validation documents in bits per UTF-8 byte; None if unknown.

        No model's expected `val_bpb` is lower. It is computed once, when the store is built, and kept there.
        """
        return None


Parts = tuple[str, ...]
"""A document of several parts, an even number: given, answer, given, answer, and so on. A pair is one of two."""


class Pair(NamedTuple):
    """A document of two parts: models see the given part and learn to predict the target."""

    given: str
    target: str


@dataclass(frozen=True, kw_only=True)
class PairSource(Source):
    """A corpus whose documents are pairs. A subclass adds `pairs`, `fingerprint`, and its own options.

    Only targets count: `floor_bits_per_byte` is the surprisal of the validation targets, each with its given part
    known, divided by their bytes.
    """

    def pairs(self, split: Split) -> Iterator[Pair]:
        """Yield the split's pairs, always in the same order; a given part may be empty, a target may not."""
        raise NotImplementedError

    def parts(self, split: Split) -> Iterator[Parts]:
        """Yield what is given and what is learned of each document; here those are the pairs."""
        yield from self.pairs(split)

    def documents(self, split: Split) -> Iterator[str]:
        """Yield the text of each pair, for example for training a tokenizer."""
        return (given + target for given, target in self.pairs(split))


def check_lengths(least: int, most: int) -> None:
    """Raise `UserError` unless `data.min_length` is at most `data.max_length`."""
    if least > most:
        raise UserError(f"data.min_length={least} is greater than data.max_length={most}.")


def expanded(path: str, key: str) -> Path:
    """Return a typed path with ~ expanded to the home folder.

    Raises:
        UserError: it's empty, the home folder doesn't exist, or only a run from elsewhere names it.
    """
    refuse_foreign(path, key)
    if not path.strip():
        raise UserError(f"{key} is empty. Give a file or folder, or leave it out.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={path}: there is no such home folder. Give the full path.") from error


def unescaped(separator: str) -> str:
    r"""Return a separator with \n, \t, \r and \\, as typed on a command line, replaced by those characters."""
    escapes = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\\": "\\"}
    return re.sub(r"\\[ntr\\]", lambda match: escapes[match[0]], separator)


def at_least_one(texts: Iterator[str], sentence: str) -> Iterator[str]:
    """Yield the texts. UserError with this message if there are none."""
    first = next(texts, None)
    if first is None:
        raise UserError(sentence)
    yield first
    yield from texts
