"""What every corpus has in common: documents in two splits, a fingerprint, and how rows are made of them.

This module's annotations are real objects, not strings: a source in another module inherits the options, and
`minllm.config.validate` reads their types there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minllm.elsewhere import refuse_foreign
from minllm.errors import UserError
from minllm.options import Count, Place

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
SPOKEN: dict[Split, str] = {"train": "training", "val": "validation"}
Packing = Literal["concat", "pad", "pack"]
PACKINGS: tuple[Packing, ...] = ("concat", "pad", "pack")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A corpus: a subclass adds its own options as fields, `documents` and `fingerprint`.

    Its fields are what `data:` in a YAML file may say, so those below belong to every source.

    seq_len: tokens in a row of a training batch, and the longest window of evaluation
    packing: how a row is made of documents: `concat` cuts the endless stream of documents in windows (fastest),
        `pad` gives each document rows of its own, `pack` fits several whole documents in a row, each of which
        sees only itself
    truncate: for `pad` and `pack`: of a document longer than a row, read the beginning only; else it's split
    stride: how many tokens the windows of evaluation go on by in a document longer than one; null: half of `seq_len`
    max_tokens: read the first training documents only, as many as have so many tokens; null: all
    num_proc: how many processes encode; null: one for each CPU
    cache: the folder that keeps the tokens of corpora already encoded; safe to delete
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
        """A string that changes whenever any document of either split does; it's asked for before every run.

        It must not depend on the options above: they say what is made of the documents.
        """
        raise NotImplementedError

    @property
    def terms(self) -> str:
        """The licence of the text, which a tokenizer that is trained on it carries along."""
        return "not said"

    def check(self) -> None:
        """Raise `UserError` soon if the documents can't be had; `documents` may find out late."""

    def documents(self, split: Split) -> Iterator[str]:
        """Yield the split's documents, each not empty, in an order that is always the same."""
        raise NotImplementedError

    def size(self, split: Split) -> int | None:
        """About how many bytes of text the split has, for a bar of progress; None if nobody knows."""
        return None

    def floor_bits_per_byte(self) -> float | None:
        """The true entropy of the validation documents in bits per UTF-8 byte, where it is known.

        No model's expected `val_bpb` is lower. It is asked for once, when the store is built, and kept there.
        """
        return None


def expanded(path: str, key: str) -> Path:
    """Return a path that was typed, whose ~ is a home folder.

    Raises:
        UserError: it's empty, nobody's home is meant, or only a run from elsewhere names it.
    """
    refuse_foreign(path, key)
    if not path.strip():
        raise UserError(f"{key} is empty. Name a file or folder, or leave it out.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={path}: there is no such home folder. Type the whole path.") from error


def unescaped(separator: str) -> str:
    r"""Return a separator in which \n, \t and \r, as they're typed on a command line, are what they stand for."""
    meant = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\\": "\\"}
    return re.sub(r"\\[ntr\\]", lambda typed: meant[typed[0]], separator)


def at_least_one(texts: Iterator[str], sentence: str) -> Iterator[str]:
    """Pass texts on. UserError with this sentence if there are none."""
    first = next(texts, None)
    if first is None:
        raise UserError(sentence)
    yield first
    yield from texts
