"""The tokens of a corpus on disk: encoded once, then mapped into memory by every run that reads them.

A store is a folder named by a hash of its source and its tokenizer. For each split it holds

    <split>.tokens    uint16, or uint32 for a vocabulary above 65,535, and
    <split>.starts    int64, one a document and one more: where the bos before it stands; last, the final bos
    <split>.checks    uint32, the checksums of the blocks of <split>.tokens

The tokens are one stream, in which a document's inputs are its tokens but for the last, and its targets the same a
place further on. Where one token begins and ends documents, two neighbours share it:

    bos d d d bos d d bos … d bos                   or else         bos d d d eos bos d d eos … d eos bos
    ↑ starts  ↑       ↑       ↑ the last                            ↑ starts      ↑             the last ↑
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from minllm.data.blocks import BLOCK, Blocks, checksums
from minllm.data.encoding import encoded
from minllm.data.source import SPLITS, SPOKEN, Source, Split, expanded
from minllm.errors import UserError
from minllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from filelock import FileLock

FORMAT = 4  # part of the key: a change of the files' meaning makes other stores
METADATA = "meta.json"
CHECKED = 1 << 24  # bytes of tokens that are held against their hash, which takes a hundredth of a second
UNFINISHED = ".tmp"  # what the folder of a store ends with until it's complete


@dataclass(frozen=True)
class Documents:
    """One split of a store, mapped from disk; the module's docstring says how the arrays hang together.

    lengths: how many tokens each document has, with its end and without its beginning: its targets
    bytes: how many bytes of UTF-8 all documents together have
    blocks: the tokens' checksums; None where there are none, as in a store of an older minllm
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    bytes: int
    blocks: Blocks | None = None

    def check(self, start: int, stop: int) -> None:
        """Raise UserError unless the tokens from `start` up to `stop` are as they were written."""
        if self.blocks is not None and not self.blocks.are_whole(start, stop):
            raise damaged(self.blocks.folder)


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
        starts = self.array(f"{split}.starts", "int64", known["documents"] + 1)
        tokens = self.array(f"{split}.tokens", self.metadata["dtype"], known["tokens"])
        # what takes no time is looked at: all starts, and the tokens of a small corpus
        is_whole = starts[0] == 0 and starts[-1] == len(tokens) - 1 and (np.diff(starts) > 0).all()
        if is_whole and tokens.nbytes <= CHECKED:
            is_whole = hashlib.sha256(tokens[:-1]).hexdigest() == known["sha256"]
            is_whole &= bool((tokens[starts] == tokens[-1]).all())  # bos
        checks = self.checks(split, starts, tokens.nbytes)
        if not is_whole:
            raise damaged(self.folder)
        return Documents(
            tokens=tokens,
            starts=starts,
            lengths=np.diff(starts) - (not self.metadata["shared_ends"]),
            bytes=known["bytes"],
            blocks=None if checks is None else Blocks(self.folder, tokens, checks),
        )

    def checks(self, split: Split, starts: np.ndarray, size: int) -> np.ndarray | None:
        """Return the checksums of the blocks of a split's tokens; None in a store of an older minllm.

        Raises:
            UserError: they, or the starts of the documents, aren't as they were written.
        """
        if "checks" not in self.metadata:
            return None
        checks = self.array(f"{split}.checks", "uint32", -(-size // BLOCK))
        if self.metadata["checks"].get(split) != [zlib.crc32(starts), zlib.crc32(checks)]:
            raise damaged(self.folder)
        return checks

    def array(self, name: str, dtype: str, length: int) -> np.ndarray:
        path = self.folder / name
        if not path.is_file() or path.stat().st_size != length * np.dtype(dtype).itemsize:
            raise damaged(self.folder)
        return np.memmap(path, dtype, mode="r", shape=(length,))


def open_store(source: Source, tokenizer: Tokenizer) -> Store:
    """Return the store of a source's tokens, after building it if there's none yet.

    It's built in a folder beside its place and renamed when complete, so what is found in its place is whole. A process
    that finds another building waits for it. What a killed one left is never looked at, and removed by the next.

    Raises:
        UserError: the source can't be read, or the folder `source.cache` can't be written.
    """
    folder = place_of(source, tokenizer)
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with alone(folder):
                if not folder.is_dir():
                    build_beside(folder, source, tokenizer)
        except OSError as error:
            raise UserError(
                f"The tokens can't be written in {folder.parent.resolve()}: {error.strerror or error}."
                " Make room there, or name another folder: data.cache=<folder>"
            ) from error
    return read_store(folder)


def place_of(source: Source, tokenizer: Tokenizer) -> Path:
    """Return the folder where the store of a source's tokens is, or will be."""
    key = json.dumps([FORMAT, source.fingerprint, source.max_tokens, tokenizer.fingerprint])
    return expanded(source.cache, "data.cache") / hashlib.sha256(key.encode()).hexdigest()[:16]


def read_store(folder: Path) -> Store:
    """Return a store that is there. UserError if it's damaged, or of another version."""
    if not (folder / METADATA).is_file():
        raise damaged(folder)
    try:
        metadata = json.loads((folder / METADATA).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder) from error
    if not is_metadata(metadata):
        raise damaged(folder)
    return Store(folder, metadata)


def is_metadata(known: Any) -> bool:
    """Whether a store's metadata has all that `write_store` writes and that is read again."""
    if not isinstance(known, dict) or known.get("format") != FORMAT:
        return False
    splits, floor = known.get("splits"), known.get("floor_bits_per_byte")
    return (
        all(isinstance(known.get(name), str) for name in ("source", "tokenizer", "validation_text"))
        and isinstance(known.get("options"), dict)
        and is_count(known.get("vocab_size"))
        and known.get("dtype") in ("uint16", "uint32")
        and isinstance(known.get("shared_ends"), bool)
        and (floor is None or (isinstance(floor, int | float) and 0 <= floor < math.inf))
        and isinstance(splits, dict)
        and all(is_split(splits.get(split)) for split in SPLITS)
        and isinstance(known.get("checks", {}), dict)
    )


def is_split(known: Any) -> bool:
    if not isinstance(known, dict) or not isinstance(known.get("sha256"), str):
        return False
    return all(is_count(known.get(name)) for name in ("documents", "tokens", "bytes"))


def is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 53


def damaged(folder: Path) -> UserError:
    return UserError(f"The token store {folder} is damaged. Delete that folder, and it'll be made again.")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that builds `folder`; the system lifts the lock of one that is killed."""
    from filelock import Timeout

    lock = lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("Another process is encoding this corpus: waiting for its tokens.", file=sys.stderr)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def is_being_built(unfinished: Path) -> bool:
    """Whether a process is at work on an unfinished store, or else has left it."""
    from filelock import Timeout

    try:
        with lock_of(unfinished.with_name(unfinished.name.partition(".")[0])).acquire(timeout=0):
            return False
    except Timeout:
        return True


def lock_of(folder: Path) -> FileLock:
    from filelock import FileLock

    return FileLock(folder.parent / f".{folder.name}.lock")


def build_beside(folder: Path, source: Source, tokenizer: Tokenizer) -> None:
    """Build a store in a temporary folder and rename it to `folder`; on any failure, leave nothing behind."""
    for left in unfinished(folder):
        shutil.rmtree(left, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=UNFINISHED, dir=folder.parent))
    try:
        write_store(beside, source, tokenizer)
        if place_of(replace(source), tokenizer) != folder:  # a copy looks again
            raise UserError("The corpus has changed while it was encoded. Type the same once more.")
        beside.chmod(0o777 & ~umask())
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def unfinished(folder: Path) -> list[Path]:
    """Return what killed processes have left of a store."""
    return sorted(folder.parent.glob(f"{folder.name}.*{UNFINISHED}"))


def write_store(folder: Path, source: Source, tokenizer: Tokenizer) -> None:
    """Write a store's files, and last its metadata."""
    dtype = "uint32" if tokenizer.vocab_size > 65_535 else "uint16"
    read = hashlib.sha256()
    splits = {
        split: write_split(folder, split, source, tokenizer, dtype, read if split == "val" else None)
        for split in SPLITS
    }
    metadata = {
        "format": FORMAT,
        "source": type(source).__qualname__,
        "options": {name: value for name, value in asdict(source).items() if name not in HOW_READ},
        "source_fingerprint": source.fingerprint,
        "tokenizer": type(tokenizer).__qualname__,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype,
        "shared_ends": tokenizer.bos_id == tokenizer.eos_id,
        "splits": splits,
        "checks": {split: write_checks(folder, split) for split in SPLITS},
        "validation_text": read.hexdigest(),  # the same whatever the tokenizer
        "floor_bits_per_byte": source.floor_bits_per_byte(),
    }
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


# the options of a source that its documents' tokens don't depend on
HOW_READ = {option.name for option in fields(Source)} - {"max_tokens"}


def write_split(
    folder: Path,
    split: Split,
    source: Source,
    tokenizer: Tokenizer,
    dtype: str,
    text_digest: hashlib._Hash | None,
) -> dict[str, int | str]:
    """Write one split's two files, and return how much is in them, and a hash that tells what.

    Args:
        text_digest: is fed the documents themselves.
    """
    documents = position = size = 0
    digest = hashlib.sha256()
    limit = source.max_tokens if split == "train" else None
    # with a limit, nobody knows how much of the corpus it is
    size_of_text = source.size(split) if limit is None else None
    texts = shown(source.documents(split), f"Encoding {split}", size_of_text)
    if text_digest is not None:
        texts = fed_to(text_digest, texts)
    with (
        (folder / f"{split}.tokens").open("wb") as tokens_file,
        (folder / f"{split}.starts").open("wb") as starts_file,
        contextlib.closing(encoded(texts, tokenizer, source.num_proc)) as batches,
    ):
        for batch in batches:
            is_last = limit is not None and position + len(batch.tokens) > limit
            if is_last:
                batch = batch.within(limit - position)
            stream = batch.tokens.astype(dtype)
            digest.update(stream)
            append(tokens_file, stream)
            append(starts_file, position + np.cumsum(batch.lengths) - batch.lengths)
            documents += len(batch.lengths)
            position += len(stream)
            size += int(batch.bytes.sum())
            if is_last:
                break
        if not documents:
            raise UserError(
                f"data.max_tokens={limit} has no room for a document. Give more, or null for all."
                if limit
                else f"The corpus has no document for {SPOKEN[split]}."
            )
        append(tokens_file, np.array([tokenizer.bos_id], dtype))
        append(starts_file, np.array([position]))
    return {"documents": documents, "tokens": position + 1, "bytes": size, "sha256": digest.hexdigest()}


def write_checks(folder: Path, split: Split) -> list[int]:
    """Write the checksums of a split's blocks. Return that of its starts, and that of the checksums themselves."""
    checks = checksums(folder / f"{split}.tokens")
    with (folder / f"{split}.checks").open("wb") as file:
        append(file, checks)
    starts = np.fromfile(folder / f"{split}.starts", np.int64)
    return [zlib.crc32(starts), zlib.crc32(checks)]


def fed_to(digest: hashlib._Hash, texts: Iterable[str]) -> Iterator[str]:
    """Pass texts on, and feed each to a digest; its length before it tells where one ends and the next begins."""
    for text in texts:
        spelled = text.encode()
        digest.update(len(spelled).to_bytes(8, "little") + spelled)
        yield text


def append(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array's numbers; unlike `ndarray.tofile`, a full disk is an `OSError` that says so."""
    file.write(memoryview(np.ascontiguousarray(array)).cast("B"))


def shown(texts: Iterable[str], doing: str, size: int | None) -> Iterator[str]:
    """Pass texts on, with a bar of progress on a terminal when they take more than a second."""
    from tqdm import tqdm

    options = {"unit": "B", "unit_scale": True, "delay": 1, "disable": None, "leave": False}
    with tqdm(desc=doing, total=size, **options) as bar:
        for text in texts:
            yield text
            bar.update(len(text.encode()))


def umask() -> int:
    """The permissions that new files don't get. Python can only read them by setting them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
