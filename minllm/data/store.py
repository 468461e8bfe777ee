"""The tokens of a corpus on disk: encoded once, then mapped into memory by every run that reads them.

A store is a folder named by a hash of its source and its tokenizer. For each split it holds

    <split>.tokens    uint16, or uint32 for a vocabulary above 65,535:   eot d d d eot d d eot … d eot
    <split>.starts    int64, one a document and one more: where the eot before it stands; last, the final eot
    <split>.bytes     int64, one a document: its length in UTF-8

The eot that ends a document also starts the next. So document i's input is `tokens[starts[i]:starts[i + 1]]` and its
target the same slice one further on, and every split is one stream of inputs and targets.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minllm.data.source import SPLITS, Source, Split
from minllm.errors import UserError
from minllm.tokenizer import Tokenizer

FORMAT = 2  # part of the key: a change of the files' meaning makes other stores
METADATA = "store.json"
ENCODED_AT_ONCE = 256  # documents


@dataclass(frozen=True)
class Documents:
    """One split of a store, mapped from disk; the module's docstring says how the arrays hang together."""

    tokens: np.ndarray
    starts: np.ndarray
    bytes: np.ndarray


@dataclass(frozen=True)
class Store:
    """A folder with the tokens of a corpus."""

    folder: Path
    metadata: dict[str, Any]

    def split(self, split: Split) -> Documents:
        """Map one split's arrays into memory.

        Raises:
            UserError: a file isn't as the store's metadata has it.
        """
        known = self.metadata["splits"][split]
        return Documents(
            tokens=self.array(f"{split}.tokens", self.metadata["dtype"], known["tokens"]),
            starts=self.array(f"{split}.starts", "int64", known["documents"] + 1),
            bytes=self.array(f"{split}.bytes", "int64", known["documents"]),
        )

    def array(self, name: str, dtype: str, length: int) -> np.ndarray:
        path = self.folder / name
        if not path.is_file() or path.stat().st_size != length * np.dtype(dtype).itemsize:
            raise UserError(
                f"The token store {self.folder} is damaged. Delete that folder, and it'll be made again."
            )
        return np.memmap(path, dtype, mode="r", shape=(length,))


def open_store(source: Source, tokenizer: Tokenizer) -> Store:
    """Return the store of a source's tokens, after building it if there's none yet.

    It's built in a folder beside its place and renamed when complete. So what is found in its place is whole, what a
    killed process leaves is never looked at, and of two processes that build at once one is a little late.

    Raises:
        UserError: the source can't be read, or the folder `source.cache` can't be written.
    """
    cache = Path(source.cache).expanduser()
    key = json.dumps([FORMAT, source.fingerprint, tokenizer.fingerprint])
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not folder.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            build_beside(folder, source, tokenizer)
        except OSError as error:
            raise UserError(
                f"The tokens can't be written in {cache.resolve()}: {error.strerror or error}."
                " Make room there, or name another folder: data.cache=<folder>"
            ) from error
    try:
        return Store(folder, json.loads((folder / METADATA).read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(
            f"The token store {folder} is damaged. Delete that folder, and it'll be made again."
        ) from error


def build_beside(folder: Path, source: Source, tokenizer: Tokenizer) -> None:
    """Build a store in a temporary folder and rename it to `folder`; on any failure, leave nothing behind."""
    beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        write_store(beside, source, tokenizer)
        beside.chmod(0o777 & ~umask())
        try:
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(beside)  # another process was faster, with the same tokens
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def write_store(folder: Path, source: Source, tokenizer: Tokenizer) -> None:
    dtype = "uint32" if tokenizer.vocab_size > 65_535 else "uint16"
    splits = {split: write_split(folder, split, source, tokenizer, dtype) for split in SPLITS}
    metadata = {
        "source": type(source).__qualname__,
        "source_fingerprint": source.fingerprint,
        "tokenizer": type(tokenizer).__qualname__,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "dtype": dtype,
        "splits": splits,
        "floor_bits_per_byte": source.floor_bits_per_byte(),
    }
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")


def write_split(
    folder: Path, split: Split, source: Source, tokenizer: Tokenizer, dtype: str
) -> dict[str, int | str]:
    """Write one split's three files, and return how much is in them, and a hash that tells what."""
    eot = np.array([tokenizer.eot], dtype)
    documents = position = size = 0
    digest = hashlib.sha256()
    with (
        (folder / f"{split}.tokens").open("wb") as tokens_file,
        (folder / f"{split}.starts").open("wb") as starts_file,
        (folder / f"{split}.bytes").open("wb") as bytes_file,
    ):
        for texts in batches_of(shown(source.documents(split), split)):
            encoded = [np.array(ids, dtype) for ids in tokenizer.encode_batch(texts)]
            lengths = np.array([1 + len(ids) for ids in encoded])
            sizes = np.array([len(text.encode()) for text in texts], "int64")
            stream = np.concatenate([part for ids in encoded for part in (eot, ids)])
            digest.update(stream)
            append(tokens_file, stream)
            append(starts_file, position + np.cumsum(lengths) - lengths)
            append(bytes_file, sizes)
            documents, position, size = (
                documents + len(texts),
                position + int(lengths.sum()),
                size + int(sizes.sum()),
            )
        append(tokens_file, eot)
        append(starts_file, np.array([position]))
    return {"documents": documents, "tokens": position + 1, "bytes": size, "sha256": digest.hexdigest()}


def append(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array's numbers; unlike `ndarray.tofile`, a full disk is an `OSError` that says so."""
    file.write(memoryview(np.ascontiguousarray(array)).cast("B"))


def batches_of(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, ENCODED_AT_ONCE)):
        yield batch


def shown(texts: Iterable[str], split: Split) -> Iterator[str]:
    """Pass texts on, with a line of progress on a terminal when they take more than a second."""
    from tqdm import tqdm

    yield from tqdm(texts, f"Encoding {split}", unit=" documents", delay=1, disable=None, leave=False)


def umask() -> int:
    """The permissions that new files don't get. Python can only read them by setting them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
