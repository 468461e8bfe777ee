"""The tokens of a corpus on disk: encoded once, then memory-mapped by every run that reads them.

A store is a folder named by a hash of its source and its tokenizer. For each split it holds

    <split>.tokens    uint16, or uint32 for a vocabulary above 65,535
    <split>.starts    int64, (documents + 1,): the position of each document's bos, and of the final bos
    <split>.checks    uint32, the checksums of the blocks of <split>.tokens
    <split>.given     int64, (documents,), if documents are pairs: the number of tokens of the given part, without bos
    <split>.answers   int32, of a probe: the token to predict at each position, or -100: see minllm.data.answers

The tokens form one stream. A document's inputs are its tokens except the last, and its targets are the same tokens
shifted by one position. If bos and eos are the same token, neighbouring documents share it:

    bos d d d bos d d bos … d bos                   otherwise       bos d d d eos bos d d eos … d eos bos
    ↑ starts  ↑       ↑       ↑ the last                            ↑ starts      ↑             the last ↑
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minllm.data.answers import NO_ANSWER, answered
from minllm.data.blocks import BLOCK, Blocks, checksums
from minllm.data.encoding import encoded
from minllm.data.metadata import FORMAT, is_metadata
from minllm.data.probe import Probe
from minllm.data.source import SPLIT_NAMES, SPLITS, PairSource, Source, Split, expanded
from minllm.data.writing import append, hashed_into, side_files, with_progress
from minllm.errors import UserError

if TYPE_CHECKING:
    from minllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from filelock import FileLock

METADATA = "meta.json"
CHECKED = 1 << 24  # maximum bytes of tokens whose hash is verified, which takes about 10 ms
AT_ONCE = 1024  # documents whose sizes are computed at once, to save memory
UNFINISHED = ".tmp"  # suffix of a store's folder until it's complete


@dataclass(frozen=True)
class Documents:
    """One memory-mapped split of a store; the module's docstring describes the arrays.

    lengths: how many targets each document has: its tokens with the eos and without the bos
    bytes: total size of the documents in bytes of UTF-8; of pairs, that of their targets
    blocks: the checksums of the tokens; None in a store of an older minllm
    given: how many of each document's first targets are the given part of a pair; None if documents aren't pairs
    answers: the target at each position of a probe's documents, or -100; None if all targets are the tokens after
    hides_answers: whether the answers aren't among the tokens
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    bytes: int
    blocks: Blocks | None = None
    given: np.ndarray | None = None
    answers: np.ndarray | None = None
    hides_answers: bool = False

    @property
    def targets(self) -> int:
        """How many targets count: all but those of given parts."""
        if self.answers is not None:
            return int((self.answers != NO_ANSWER).sum())
        return int(self.lengths.sum() - (0 if self.given is None else self.given.sum()))

    def sizes(self, byte_lengths: np.ndarray) -> np.ndarray:
        """Return the size in bytes of UTF-8 of each document, or of a pair's target, given the bytes of each token."""
        if self.answers is not None:
            some = np.where(self.answers == NO_ANSWER, 0, byte_lengths[np.maximum(self.answers, 0)])
            return np.add.reduceat(some, self.starts[:-1])
        stream, sizes = np.asarray(self.tokens), []
        for first in range(0, len(self.starts) - 1, AT_ONCE):
            starts = self.starts[first : first + AT_ONCE + 1]
            some = byte_lengths[stream[starts[0] : starts[-1]]]
            begins = starts[:-1] - starts[0]
            if self.given is None:
                sizes.append(np.add.reduceat(some, begins))
            else:  # each document's bytes up to its target, and from it on
                targets = begins + 1 + self.given[first : first + AT_ONCE]
                sizes.append(np.add.reduceat(some, np.stack([begins, targets], 1).ravel())[1::2])
        return np.concatenate(sizes)

    def check(self, start: int, stop: int) -> None:
        """Raise UserError if the tokens in [start, stop) don't match their checksums."""
        if self.blocks is not None and not self.blocks.are_intact(start, stop):
            raise damaged(self.blocks.folder)


@dataclass(frozen=True)
class Store:
    """A folder with the tokens of a corpus."""

    folder: Path
    metadata: dict[str, Any]

    def split(self, split: Split) -> Documents:
        """Memory-map the arrays of a split.

        Raises:
            UserError: a file doesn't match the store's metadata.
        """
        known = self.metadata["splits"][split]
        starts = self.array(f"{split}.starts", "int64", known["documents"] + 1)
        tokens = self.array(f"{split}.tokens", self.metadata["dtype"], known["tokens"])
        # only quick checks: all starts, and the tokens of a small corpus
        is_intact = starts[0] == 0 and starts[-1] == len(tokens) - 1 and (np.diff(starts) > 0).all()
        if is_intact and tokens.nbytes <= CHECKED:
            is_intact = hashlib.sha256(tokens[:-1]).hexdigest() == known["sha256"]
            is_intact &= bool((tokens[starts] == tokens[-1]).all())  # bos
        checks = self.checks(split, starts, tokens.nbytes)
        given = self.array(f"{split}.given", "int64", known["documents"]) if "given" in known else None
        answers = self.array(f"{split}.answers", "int32", known["tokens"]) if "answers" in known else None
        for name, array in {"given": given, "answers": answers}.items():
            is_intact &= array is None or zlib.crc32(array) == known[name]
        if not is_intact:
            raise damaged(self.folder)
        return Documents(
            tokens=tokens,
            starts=starts,
            lengths=np.diff(starts) - (answers is None and not self.metadata["shared_ends"]),
            bytes=known["bytes"],
            blocks=None if checks is None else Blocks(self.folder, tokens, checks),
            given=given,
            answers=answers,
            hides_answers=self.metadata.get("hides_answers", False),
        )

    def checks(self, split: Split, starts: np.ndarray, size: int) -> np.ndarray | None:
        """Return the checksums of the blocks of a split's tokens; None in a store of an older minllm.

        Raises:
            UserError: the checksums or the starts of the documents are damaged.
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
    """Return the store of a source's tokens; build it first if there is none yet.

    It's built in a temporary folder and renamed when complete, so a store that exists is complete. A process waits if
    another one is building the same store. Leftovers of a killed process are removed by the next build.

    Raises:
        UserError: the source can't be read, or the folder `source.cache` can't be written.
    """
    folder = place_of(source, tokenizer)
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with build_lock(folder):
                if not folder.is_dir():
                    build_beside(folder, source, tokenizer)
        except OSError as error:
            raise UserError(
                f"The tokens can't be written in {folder.parent.resolve()}: {error.strerror or error}."
                " Free some space there, or choose another folder: data.cache=<folder>"
            ) from error
    return read_store(folder)


def place_of(source: Source, tokenizer: Tokenizer) -> Path:
    """Return the folder of the store of a source's tokens, whether or not it exists."""
    key = json.dumps([FORMAT, source.fingerprint, source.max_tokens, tokenizer.fingerprint])
    return expanded(source.cache, "data.cache") / hashlib.sha256(key.encode()).hexdigest()[:16]


def read_store(folder: Path) -> Store:
    """Return an existing store. UserError if it's damaged, or of another version."""
    if not (folder / METADATA).is_file():
        raise damaged(folder)
    try:
        metadata = json.loads((folder / METADATA).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder) from error
    if not is_metadata(metadata):
        raise damaged(folder)
    return Store(folder, metadata)


def damaged(folder: Path) -> UserError:
    return UserError(f"The token store {folder} is damaged. Delete that folder to have it rebuilt.")


@contextlib.contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Hold the lock for building `folder`; the system releases it if the process is killed."""
    from filelock import Timeout

    lock = lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("Another process is encoding this corpus: waiting for it to finish.", file=sys.stderr)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def is_being_built(unfinished: Path) -> bool:
    """Whether a process is still building an unfinished store."""
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
    """Build a store in a temporary folder and rename it to `folder`; remove it on failure."""
    for leftover in unfinished(folder):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=UNFINISHED, dir=folder.parent))
    try:
        write_store(temporary, source, tokenizer)
        if place_of(replace(source), tokenizer) != folder:  # a copy computes its fingerprint anew
            raise UserError("The corpus changed while it was being encoded. Run the same command again.")
        temporary.chmod(0o777 & ~umask())
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def unfinished(folder: Path) -> list[Path]:
    """Return the unfinished folders of a store that killed processes left."""
    return sorted(folder.parent.glob(f"{folder.name}.*{UNFINISHED}"))


def write_store(folder: Path, source: Source, tokenizer: Tokenizer) -> None:
    """Write a store's files, its metadata last."""
    dtype = "uint32" if tokenizer.vocab_size > 65_535 else "uint16"
    read = hashlib.sha256()
    splits = {
        split: write_split(folder, split, source, tokenizer, dtype, read if split == "val" else None)
        for split in SPLITS
    }
    metadata = {
        "format": FORMAT,
        "source": type(source).__qualname__,
        "options": {name: value for name, value in asdict(source).items() if name not in READING_OPTIONS},
        "source_fingerprint": source.fingerprint,
        "tokenizer": type(tokenizer).__qualname__,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype,
        "shared_ends": tokenizer.bos_id == tokenizer.eos_id,
        "splits": splits,
        "checks": {split: write_checks(folder, split) for split in SPLITS},
        "validation_text": read.hexdigest(),  # independent of the tokenizer
        "floor_bits_per_byte": source.floor_bits_per_byte(),
    }
    if isinstance(source, Probe):
        known = {"chance": source.chance, "ceiling": source.ceiling, "hides_answers": source.hides_answers}
        metadata |= known
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


# the options of a source that don't affect its tokens
READING_OPTIONS = {option.name for option in fields(Source)} - {"max_tokens"}


def write_split(
    folder: Path,
    split: Split,
    source: Source,
    tokenizer: Tokenizer,
    dtype: str,
    text_digest: hashlib._Hash | None,
) -> dict[str, int | str]:
    """Write the tokens and starts of a split; return the numbers of documents, tokens and bytes, and the tokens' hash.

    For pairs, also write the sizes of given parts, and for a probe the answers; return their checksums.

    Args:
        text_digest: is updated with the text of the documents.
    """
    documents = position = size = 0
    digest = hashlib.sha256()
    limit = source.max_tokens if split == "train" else None
    # with a limit, the share of the corpus that is read isn't known
    size_of_text = source.size(split) if limit is None else None
    texts = source.parts(split) if isinstance(source, PairSource) else source.documents(split)
    texts = with_progress(texts, f"Encoding {split}", size_of_text)
    if text_digest is not None:
        texts = hashed_into(text_digest, texts)
    with (
        (folder / f"{split}.tokens").open("wb") as tokens_file,
        (folder / f"{split}.starts").open("wb") as starts_file,
        side_files(folder, split, source) as side,
        contextlib.closing(encoded(texts, tokenizer, source.num_proc)) as batches,
    ):
        for batch in batches:
            is_last = limit is not None and position + len(batch.tokens) > limit
            if is_last:
                batch = batch.within(limit - position)
            if isinstance(source, Probe):
                batch = answered(batch, source.hides_answers, tokenizer.bos_id != tokenizer.eos_id)
            stream = batch.tokens.astype(dtype)
            digest.update(stream)
            append(tokens_file, stream)
            append(starts_file, position + np.cumsum(batch.lengths) - batch.lengths)
            for name, file in side.items():
                file.add(getattr(batch, name))
            documents += len(batch.lengths)
            position += len(stream)
            size += int(batch.bytes.sum())
            if is_last:
                break
        if not documents:
            raise UserError(
                f"data.max_tokens={limit} is less than one document. Increase it, or use null for no limit."
                if limit
                else f"The corpus has no {SPLIT_NAMES[split]} documents."
            )
        append(tokens_file, np.array([tokenizer.bos_id], dtype))
        append(starts_file, np.array([position]))
        if "answers" in side:
            side["answers"].add(np.array([NO_ANSWER], np.int32))  # at the last bos
    known = {"documents": documents, "tokens": position + 1, "bytes": size, "sha256": digest.hexdigest()}
    return known | {name: file.checksum for name, file in side.items()}


def write_checks(folder: Path, split: Split) -> list[int]:
    """Write the checksums of a split's blocks. Return the CRC-32 of its starts, and of the checksums themselves."""
    checks = checksums(folder / f"{split}.tokens")
    with (folder / f"{split}.checks").open("wb") as file:
        append(file, checks)
    starts = np.fromfile(folder / f"{split}.starts", np.int64)
    return [zlib.crc32(starts), zlib.crc32(checks)]


def umask() -> int:
    """Return the process's umask, which Python can only read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
