"""`data=text`: the documents of your own .txt, .jsonl and .parquet files."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minllm.data.parquet import ParquetFiles, bytes_of_column
from minllm.data.source import SPOKEN, Source, Split, at_least_one, expanded, unescaped
from minllm.errors import UserError, neighbour, printable
from minllm.files.filetypes import decode, filled, other_kind, refuse_nuls, refuse_other_kinds
from minllm.schema.options import Fraction, Place

SUFFIXES = (".txt", ".jsonl", ".parquet")
PIECE = 1 << 20  # bytes of a text without separators that are one document
NEAR = 1 << 12  # bytes in which to look for a line's end where the validation part may begin
LONGEST = 1 << 26  # bytes of a document that ends with a separator
HASHED = 1 << 24  # bytes of a corpus that are hashed, so that it costs a hundredth of a second


@dataclass(frozen=True, kw_only=True)
class TextFiles(Source):
    """Documents from files, read as they are needed and never a large file at once.

    A .jsonl file has a document in each line, a .parquet file in each row, and a .txt file wherever `separator`
    stands, less the white space around it. A document is held out if a hash of its text says so: the same text is
    always on the same side, whatever other documents there are.

    A .txt file without a separator is one text. Its last part is held out, from the end of a line on; each part is
    one document up to 1 MiB, and longer ones are cut at the end of a line into documents of at most that size.
    Evaluation reads a document in windows of `seq_len` tokens.

    path: a file, a glob, or a list of both; files are read in the order of the list, a glob's by name
    field: the key of .jsonl lines and the column of .parquet files that holds the text
    separator: what stands between the documents of a .txt file; null if it is one text
    val_fraction: about how much is held out: of the documents, or of the bytes of each text that is one document
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
        """Raise `UserError` if a file is missing, or is of another kind by its first bytes."""
        for path in find_files(self.path):
            with readable(path):
                refuse_other_kinds(path)

    def documents(self, split: Split) -> Iterator[str]:
        """Yield the split's documents.

        Raises:
            UserError: a file is missing, empty, not UTF-8 or malformed, or nothing falls in the split.
        """
        found = (text for path in find_files(self.path) for text in self.documents_of(path, split))
        yield from at_least_one(
            found,
            f"No document of {self.path} falls in the {SPOKEN[split]} set: there is too little text for"
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
            said = f"{path}: passed over {missing:,} documents whose '{self.field}' is null."
            print(printable(said), file=sys.stderr)

    def all_of(self, path: Path) -> Iterator[tuple[str | None, str]]:
        """Yield every document of a file, None where there's no text, with the words for where it stands."""
        if path.suffix == ".txt":
            assert self.separator is not None
            return separated(path, unescaped(self.separator))
        return (lines if path.suffix == ".jsonl" else rows)(path, self.field)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise as a `UserError` that a file can't be read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error


def check_division(separator: str | None, val_fraction: float) -> None:
    """Refuse what can't part documents, or training from validation."""
    if separator == "":
        raise UserError("data.separator is empty. Name the text between documents, or null if there is none.")
    if not 0 < val_fraction < 1:
        raise UserError(f"data.val_fraction={val_fraction} leaves nothing on one side. Try 0.1.")


def find_files(path: str | list[str]) -> list[Path]:
    """Return the files that paths and globs name, each once."""
    found: dict[Path, None] = {}
    for one in [path] if isinstance(path, str) else path:
        here = expanded(one, "data.path")
        with readable(here):
            found.update(dict.fromkeys(matches(here, one)))
    for file in found:
        with readable(file):
            refuse_unfit(file, SUFFIXES)
    if not found:
        raise UserError(f"data.path={path} names no file. Name one, such as data.path=notes.txt")
    return list(found)


def matches(here: Path, typed: str) -> list[Path]:
    """Return the files that one path or glob names."""
    if here.is_dir():
        raise UserError(
            f"data.path={typed} is a folder. Name its files: 'data.path={typed.rstrip('/')}/*.txt'"
        )
    if here.exists():
        return [here]
    found = sorted(map(Path, glob.glob(str(here), recursive=True)))
    if not found:
        what = "No file matches" if glob.has_magic(typed) else "There is no file"
        raise UserError(f"{what} data.path={typed} (looked in {Path.cwd()}).{neighbour(here)}")
    return [file for file in found if not file.is_dir()]


def refuse_unfit(file: Path, suffixes: Collection[str]) -> None:
    """Raise `UserError` if a file isn't one that can be read again and again, and whose name says how."""
    if file.is_symlink() and not file.exists():
        raise UserError(f"{file} is a symbolic link to {os.readlink(file)}, which isn't there.")
    if not file.is_file():
        raise UserError(f"{file} is not a file on disk but a pipe or device. Write its text to a file first.")
    if file.suffix not in suffixes:
        with file.open("rb") as opened:
            said = other_kind(opened.read(1 << 10))
        what = f" It is {said[0]}. {filled(said[1], file)}" if said else ""
        raise UserError(
            f"{file} is not one of {', '.join(suffixes)}, the kinds of file that can be read.{what}"
        )
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty.")


def identities(paths: list[Path]) -> list[str]:
    """Return for each file what changes when it does: a hash of its content, or its name, size and time.

    The smallest files are hashed, up to `HASHED` bytes of all together, so that large ones cost no time.
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
    """Return about how many bytes of text a file holds, without reading it."""
    return bytes_of_column(path, field) if path.suffix == ".parquet" else path.stat().st_size


def is_held_out(text: str, place: str, fraction: float) -> bool:
    """Whether a hash of a text says that it's for validation; `place` is the words for where it stands."""
    try:
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: the text has half a surrogate pair, which is no character.") from error
    return int.from_bytes(digest, "big") < fraction * 2**64


# ---- .txt ---------------------------------------------------------------------------------------------------------


def part_of_text(path: Path, split: Split, fraction: float) -> Iterator[str]:
    """Yield one side of a file that is a single text, in documents of at most `PIECE` bytes."""
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
    """Return how many bytes come before the first good place to cut: after a line, a word, a character.

    left: how many bytes the text has left; a cut after the last of them is none
    """
    found = [at for at in (block.find(mark, 0, left - 1) for mark in (b"\n", b" ")) if at >= 0]
    if found:
        return found[0] + 1
    return next((at for at in range(len(block)) if block[at] & 0xC0 != 0x80), len(block))


def last_cut(block: bytes) -> int:
    """Return how many bytes come before the last good place to cut."""
    found = [at for at in map(block.rfind, (b"\n", b" ")) if at >= 0]
    if found:
        return found[0] + 1
    return next((at for at in range(len(block) - 1, 0, -1) if block[at] & 0xC0 != 0x80), len(block))


def separated(path: Path, separator: str) -> Iterator[tuple[str, str]]:
    """Yield the documents between separators, without the white space around them."""
    mark, rest, start, found = separator.encode(), b"", 0, False
    with path.open("rb") as file:
        while block := file.read(PIECE):
            *pieces, rest = (rest + block).split(mark)
            found = found or bool(pieces)
            if len(rest) > LONGEST:
                raise UserError(
                    f"{path} has no '{separator}' in {LONGEST / 1e6:,.0f} MB from byte {start:,} on. If it is one text,"
                    " leave data.separator out."
                )
            for piece in pieces:
                yield text_from(piece, path, start).strip(), f"{path}, byte {start:,}"
                start += len(piece) + len(mark)
    if not found:
        raise UserError(no_separator(path, separator))
    yield text_from(rest, path, start).strip(), f"{path}, byte {start:,}"


def no_separator(path: Path, separator: str) -> str:
    """Return the sentence for a separator that doesn't come, which may be that lines end otherwise."""
    with path.open("rb") as file:
        sample = file.read(PIECE)
    windows = separator.replace("\n", "\r\n")
    if windows != separator and windows.encode() in sample:
        typed = windows.replace("\r", r"\r").replace("\n", r"\n")
        return f"{path} has lines that end with \\r\\n. Type 'data.separator=\"{typed}\"'"
    return f"{path} has no {separator!r} in it. If it is one text, leave data.separator out."


def text_from(block: bytes, path: Path, start: int) -> str:
    """Return the text of a file's bytes from `start` on, without the mark that some programs begin a file with."""
    text = decode(block, path, start)
    return text.removeprefix("\ufeff") if start == 0 else text


# ---- .jsonl and .parquet ------------------------------------------------------------------------------------------


def lines(path: Path, field: str) -> Iterator[tuple[str | None, str]]:
    """Yield the text in each line of a .jsonl file, None for null; blank lines are passed over."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number:,}"
            text = text_from(line, path, start)
            start += len(line)
            if text.strip():
                yield text_of(text, field, place), place


def text_of(line: str, field: str, place: str) -> str | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {getattr(error, 'msg', error)}.") from error
    if not isinstance(record, dict):
        raise UserError(f'{place} is not an object such as {{"{field}": "…"}}.')
    return checked(record, field, place)


def rows(path: Path, field: str) -> Iterator[tuple[str | None, str]]:
    """Yield the text in each row of a .parquet file, None for a missing value."""
    import pyarrow

    file = ParquetFiles([str(path)], [field])
    try:
        if field not in file.column_names:
            raise UserError(
                f"{path} has no column '{field}', only {', '.join(file.column_names)}. Choose one: data.field=…"
            )
        number = 0
        for batch in file.iter(1000):
            for value in batch[field]:
                number += 1
                place = f"{path}, row {number:,}"
                yield checked({field: value}, field, place), place
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path} is not a parquet file that can be read: {str(error).splitlines()[0]}"
        ) from error


def checked(record: dict[str, Any], field: str, place: str) -> str | None:
    if field not in record:
        has = f"only {', '.join(map(str, record))}" if record else "or anything else"
        raise UserError(f"{place} has no '{field}', {has}. Name the key that holds the text: data.field=…")
    text = record[field]
    if not isinstance(text, str | None):
        said = json.dumps(text, default=str)[:40]
        raise UserError(
            f"{place}: '{field}' is not text but {said}. Name the key that holds the text: data.field=…"
        )
    if text is not None:
        refuse_nuls(text, place)
    return text
