"""`data=pairs`: documents with a given part and a target, from your own files or a data set of the Hugging Face Hub.

This module's annotations are real objects, not strings, for the reason that `minllm.data.source` gives.
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

from minllm.data import records
from minllm.data.hub import Hub
from minllm.data.source import SPLIT_NAMES, Pair, PairSource, Split, at_least_one, unescaped
from minllm.data.text import (
    bytes_of_text,
    check_division,
    encoded,
    find_files,
    identities,
    is_held_out,
    readable,
)
from minllm.errors import UserError
from minllm.files.filetypes import refuse_other_kinds
from minllm.schema.options import Count, Fraction, Name, Place

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
OF_HUB = ("name", "revision", "train_split", "val_split", "streaming")
"""Options that have no effect on files."""


@dataclass(frozen=True, kw_only=True)
class Pairs(PairSource):
    """Pairs from files, or from a data set on the hub if `repo` names one.

    Each line of a .jsonl file, each object of the list in a .json file, and each row of a .csv or .parquet file is a
    pair. A hash of the source decides whether it is held out, so pairs with the same source are in the same split. A
    data set on the hub is read as with `data=tinystories`: its own validation split is used if it has one.

    path: a file, a glob, or a list of both; with `repo`, a local copy of the data set
    repo: the data set's name on the hub, owner/name
    source_key: the key or column that holds the given part
    target_key: the key or column that holds the target
    separator: the text between them, which belongs to the given part
    val_fraction: approximate share of pairs held out, if there is no validation split
    val_documents: use only this many validation pairs, from the first; null: all
    name, revision, train_split, val_split, streaming: as for `minllm.data.hub.Hub`
    licence: the terms given by the owner of the text
    """

    path: Place | list[Place] | None = None
    repo: Name | None = None
    source_key: Name = "source"
    target_key: Name = "target"
    separator: str = "\n"
    val_fraction: Fraction = 0.1
    val_documents: Count | None = None
    name: Name | None = None
    revision: Name = "main"
    train_split: str = "train"
    val_split: str | None = "validation"
    streaming: bool = False
    licence: str = "not said"

    def __post_init__(self) -> None:
        check_division(None, self.val_fraction)
        if self.source_key == self.target_key:
            raise UserError(
                f"data.source_key and data.target_key are both '{self.source_key}'. Give two keys."
            )
        if self.path is None and self.repo is None:
            raise UserError(
                "data=pairs needs files or a data set of the hub: data.path=pairs.jsonl or data.repo=owner/name"
            )
        if self.repo is not None:
            _ = self.hub  # its constructor checks the options
            return
        defaults = {option.name: option.default for option in fields(self)}
        for option in OF_HUB:
            if getattr(self, option) != defaults[option]:
                raise UserError(
                    f"data.{option} has no effect on files, only on a data set of the hub: data.repo=owner/name"
                )

    @functools.cached_property
    def hub(self) -> Hub:
        assert self.repo is not None
        if isinstance(self.path, list):
            raise UserError(
                "With data.repo, data.path is the one folder or file with a copy of the data set."
            )
        return Hub(
            repo=self.repo,
            path=self.path,
            val_fraction=self.val_fraction,
            val_documents=self.val_documents,
            licence=self.licence,
            name=self.name,
            revision=self.revision,
            train_split=self.train_split,
            val_split=self.val_split,
            streaming=self.streaming,
        )

    @property
    def keys(self) -> dict[str, str]:
        return {"source_key": self.source_key, "target_key": self.target_key}

    @property
    def files(self) -> list[Path]:
        assert self.path is not None
        return find_files(self.path, SUFFIXES)

    @functools.cached_property
    def fingerprint(self) -> str:
        options = ["pairs", self.source_key, self.target_key, unescaped(self.separator)]
        options += [self.val_fraction, self.val_documents]
        known = identities(self.files) if self.repo is None else self.hub.fingerprint
        return hashlib.sha256(json.dumps([options, known]).encode()).hexdigest()

    @property
    def terms(self) -> str:
        return self.licence

    def check(self) -> None:
        """Raise `UserError` if files are missing or of another kind, or the data set isn't available."""
        if self.repo is not None:
            self.hub.check()
            return
        for path in self.files:
            with readable(path):
                refuse_other_kinds(path)

    def size(self, split: Split) -> int | None:
        if self.repo is not None:
            return self.hub.size(split)
        share = self.val_fraction if split == "val" else 1 - self.val_fraction
        return int(share * sum(bytes_of_text(path, self.target_key) for path in self.files))

    def pairs(self, split: Split) -> Iterator[Pair]:
        """Yield the split's pairs.

        Raises:
            UserError: a file or the data set can't be read, a pair lacks a part, or the split has no pairs.
        """
        pairs = self.pairs_of_files(split) if self.repo is None else self.pairs_of_hub(split)
        place = self.hub.place if self.repo is not None else self.path
        yield from at_least_one(
            islice(pairs, self.val_documents if split == "val" else None),
            f"{place} has no {SPLIT_NAMES[split]} pairs: there are too few sources for"
            f" data.val_fraction={self.val_fraction}. Add pairs or change the fraction.",
        )

    def pairs_of_files(self, split: Split) -> Iterator[Pair]:
        for path in self.files:
            with readable(path):
                refuse_other_kinds(path)
                for texts, place in records.texts(path, self.keys, "the key that holds the text"):
                    pair = self.pair(texts, place)
                    if is_held_out(pair.given, place, self.val_fraction) == (split == "val"):
                        yield pair

    def pairs_of_hub(self, split: Split) -> Iterator[Pair]:
        part, is_shared = self.hub.part_with(split)
        for number, texts in enumerate(self.hub.columns(part.rows, self.keys), 1):
            pair = self.pair(texts, f"{self.hub.place}, row {number:,}")
            if not is_shared or self.hub.is_held_out(pair.given) == (split == "val"):
                yield pair

    def pair(self, texts: tuple[str | None, ...], place: str) -> Pair:
        """Return the pair of a record. UserError if it lacks a part."""
        for key, text in zip(self.keys.values(), texts):
            if text is None:
                raise UserError(f"{place}: '{key}' is null. Give it a text, or remove the pair.")
            encoded(text, place)
        given, target = texts
        if not target:
            raise UserError(
                f"{place}: '{self.target_key}' is empty, so there is nothing to predict. Remove the pair."
            )
        return Pair(given + unescaped(self.separator), target)
