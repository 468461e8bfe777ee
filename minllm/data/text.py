"""`data=text`: documents from your own .txt, .jsonl and .parquet files."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minllm.data import records
from minllm.data.parquet import bytes_of_column
from minllm.data.records import text_from
from minllm.data.source import SPLIT_NAMES, Source, Split, at_least_one, expanded, unescaped
from minllm.errors import UserError, neighbour, printable
from minllm.files.filetypes import filled, other_kind, refuse_other_kinds
from minllm.schema.options import Fraction, Place

SUFFIXES = (".txt", ".jsonl", ".parquet")
PIECE = 1 << 20  # maximum bytes of a document in a text without separators
NEAR = 1 << 12  # bytes to search for a line end at which the validation part may start
LONGEST = 1 << 26  # maximum bytes of a document that ends with a separator
HASHED = 1 << 24  # maximum bytes of a corpus to hash, which takes about 10 ms


@dataclass(frozen=True, kw_only=True)
class TextFiles(Source):
    """Documents from files, read incrementally: a large file is never in memory as a whole.

    Each line of a .jsonl file and each row of a .parquet file is a document; a .txt file is split at `separator`, and
    surrounding white space is stripped. A hash of a document's text decides whether it is held out, so the same text is
    always in the same split, whatever other documents there are.

    A .txt file without a separator is a single text. Its last part, starting after a line end, is held out. Parts
    longer than 1 MiB are cut at line ends into documents of at most that size. Evaluation reads a document in windows
    of `seq_len` tokens.

    path: a file, a glob, or a list of both; files are read in list order, those of a glob sorted by name
    field: the key of .jsonl lines and the column of .parquet files that holds the text
    separator: the text between the documents of a .txt file; null if the file is a single text
    val_fraction: approximate share held out: of the documents, or of the bytes of a single text
    """

    path: Place | list[Place]
    field: str = "text"
    separator: str | None = None
    val_fraction: Fraction = 0.1

    def __post_init__(self) -> None:
        check_division(self.separator, self.val_fraction)

    @functools.cached_property
    def fingerprint(self) -> str:
        options = [self.field, self.separator, self.val_fraction]
        known = identities(find_files(self.path))
        return hashlib.sha256(json.dumps([options, known]).encode()).hexdigest()

    def check(self) -> None:
        """Raise `UserError` if a file is missing, or if its first bytes show that it's of another kind."""
        for path in find_files(self.path):
            with readable(path):
                refuse_other_kinds(path)

    def documents(self, split: Split) -> Iterator[str]:
        """Yield the split's documents.

        Raises:
            UserError: a file is missing, empty, not UTF-8 or malformed, or the split has no documents.
        """
        texts = (text for path in find_files(self.path) for text in self.documents_of(path, split))
        yield from at_least_one(
            texts,
            f"{self.path} has no {SPLIT_NAMES[split]} documents: there is too little text for"
            f" data.val_fraction={self.val_fraction}. Add text or change the fraction.",
        )

    def size(self, split: Split) -> int:
        share = self.val_fraction if split == "val" else 1 - self.val_fraction
        return int(share * sum(bytes_of_text(path, self.field) for path in find_files(self.path)))

    def documents_of(self, path: Path, split: Split) -> Iterator[str]:
        missing = 0
        with readable(path):
            refuse_other_kinds(path)
            if path.suffix == ".txt" and self.separator is None:
                yield from part_of_text(path, split, self.val_fraction)
                return
            for text, place in self.all_of(path):
                if text is None:
                    missing += 1
                elif text and is_held_out(text, place, self.val_fraction) == (split == "val"):
                    yield text
        if missing and split == "train":
            warning = f"{path}: skipped {missing:,} documents whose '{self.field}' is null."
            print(printable(warning), file=sys.stderr)

    def all_of(self, path: Path) -> Iterator[tuple[str | None, str]]:
        """Yield (text, location) of every document of a file; the text is None if it's missing."""
        if path.suffix == ".txt":
            assert self.separator is not None
            return separated(path, unescaped(self.separator))
        keys = {"field": self.field}
        return (
            (texts[0], place) for texts, place in records.texts(path, keys, "the key that holds the text")
        )


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError into a UserError that says the file can't be read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error


def check_division(separator: str | None, val_fraction: float) -> None:
    """Raise UserError if the separator is empty or the fraction leaves one split empty."""
    if separator == "":
        raise UserError("data.separator is empty. Give the text between documents, or null if there is none.")
    if not 0 < val_fraction < 1:
        raise UserError(
            f"data.val_fraction={val_fraction} leaves the training or the validation set empty. Try 0.1."
        )


def find_files(path: str | list[str], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Return the files that paths and globs name, without duplicates. UserError if one has none of the suffixes."""
    files: dict[Path, None] = {}
    for pattern in [path] if isinstance(path, str) else path:
        here = expanded(pattern, "data.path")
        with readable(here):
            files.update(dict.fromkeys(matches(here, pattern, suffixes[0])))
    for file in files:
        with readable(file):
            refuse_unfit(file, suffixes)
    if not files:
        raise UserError(f"data.path={path} names no file. Give one, such as data.path=notes{suffixes[0]}")
    return list(files)


def matches(here: Path, pattern: str, suffix: str) -> list[Path]:
    """Return the files that one path or glob names; `suffix` is for the error message."""
    if here.is_dir():
        raise UserError(
            f"data.path={pattern} is a folder. Give its files: 'data.path={pattern.rstrip('/')}/*{suffix}'"
        )
    if here.exists():
        return [here]
    files = sorted(map(Path, glob.glob(str(here), recursive=True)))
    if not files:
        what = "No file matches" if glob.has_magic(pattern) else "There is no file"
        raise UserError(f"{what} data.path={pattern} (looked in {Path.cwd()}).{neighbour(here)}")
    return [file for file in files if not file.is_dir()]


def refuse_unfit(file: Path, suffixes: Collection[str]) -> None:
    """Raise `UserError` if a path isn't a non-empty regular file with a known suffix."""
    if file.is_symlink() and not file.exists():
        raise UserError(f"{file} is a symbolic link to {os.readlink(file)}, which doesn't exist.")
    if not file.is_file():
        raise UserError(f"{file} is not a file on disk but a pipe or device. Write its text to a file first.")
    if file.suffix not in suffixes:
        with file.open("rb") as opened:
            kind = other_kind(opened.read(1 << 10))
        what = f" It is {kind[0]}. {filled(kind[1], file)}" if kind else ""
        raise UserError(f"{file} can't be read: only {', '.join(suffixes)} files are supported.{what}")
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty.")


def identities(paths: list[Path]) -> list[str]:
    """Return for each file a string that changes when it does: a hash of its content, or its name, size and time.

    The smallest files are hashed, up to `HASHED` bytes in total, so that large ones take no time.
    """
    known, left = {}, HASHED
    try:
        for path in sorted(paths, key=lambda path: path.stat().st_size):
            status = path.stat()
            left -= status.st_size
            if left < 0:
                known[path] = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
            else:
                known[path] = path.suffix + hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{error.filename} can't be read: {error.strerror}.") from error
    return [known[path] for path in paths]


def bytes_of_text(path: Path, field: str) -> int:
    """Return approximately how many bytes of text a file holds, without reading it."""
    return bytes_of_column(path, field) if path.suffix == ".parquet" else path.stat().st_size


def is_held_out(text: str, place: str, fraction: float) -> bool:
    """Whether a text belongs to the validation set, by its hash; `place` is its location, for errors."""
    digest = hashlib.blake2b(encoded(text, place), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def encoded(text: str, place: str) -> bytes:
    """Return a text in UTF-8. UserError if it has characters that aren't valid."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: the text has an unpaired surrogate, which is not a valid character."
        ) from error


# ---- .txt ---------------------------------------------------------------------------------------------------------


def part_of_text(path: Path, split: Split, fraction: float) -> Iterator[str]:
    """Yield one split of a file that is a single text, in documents of at most `PIECE` bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        middle = int(size * (1 - fraction))
        file.seek(middle)
        middle += first_cut(file.read(NEAR), size - middle)
        if not 0 < middle < size:
            raise UserError(f"{path} is too small to hold out {fraction:.0%} of it. Add text.")
        start, end = (0, middle) if split == "train" else (middle, size)
        while start < end:
            file.seek(start)
            block = file.read(min(PIECE, end - start))
            if start + len(block) < end:
                block = block[: last_cut(block)]
            text = text_from(block, path, start)
            start += len(block)
            if text.strip():
                yield text


def first_cut(block: bytes, left: int) -> int:
    """Return the offset of the first good place to cut: after a line, else a word, else a character.

    left: how many bytes of the text remain; a cut after the last of them doesn't count
    """
    cuts = [at for at in (block.find(mark, 0, left - 1) for mark in (b"\n", b" ")) if at >= 0]
    if cuts:
        return cuts[0] + 1
    return next((at for at in range(len(block)) if block[at] & 0xC0 != 0x80), len(block))


def last_cut(block: bytes) -> int:
    """Return the offset of the last good place to cut."""
    cuts = [at for at in map(block.rfind, (b"\n", b" ")) if at >= 0]
    if cuts:
        return cuts[0] + 1
    return next((at for at in range(len(block) - 1, 0, -1) if block[at] & 0xC0 != 0x80), len(block))


def separated(path: Path, separator: str) -> Iterator[tuple[str, str]]:
    """Yield the documents between separators, stripped of surrounding white space."""
    mark, rest, start, has_separator = separator.encode(), b"", 0, False
    with path.open("rb") as file:
        while block := file.read(PIECE):
            *pieces, rest = (rest + block).split(mark)
            has_separator = has_separator or bool(pieces)
            if len(rest) > LONGEST:
                raise UserError(
                    f"{path} has no '{separator}' in the {LONGEST / 1e6:,.0f} MB from byte {start:,}. If it is a single"
                    " text, leave data.separator out."
                )
            for piece in pieces:
                yield text_from(piece, path, start).strip(), f"{path}, byte {start:,}"
                start += len(piece) + len(mark)
    if not has_separator:
        raise UserError(no_separator(path, separator))
    yield text_from(rest, path, start).strip(), f"{path}, byte {start:,}"


def no_separator(path: Path, separator: str) -> str:
    """Return the error for a file without the separator, which may be due to Windows line endings."""
    with path.open("rb") as file:
        sample = file.read(PIECE)
    windows = separator.replace("\n", "\r\n")
    if windows != separator and windows.encode() in sample:
        escaped = windows.replace("\r", r"\r").replace("\n", r"\n")
        return f"{path} has lines that end with \\r\\n. Type 'data.separator=\"{escaped}\"'"
    return f"{path} doesn't contain {separator!r}. If it is a single text, leave data.separator out."
