"""Writing the files of a store: documents on their way to disk, with their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from minllm.data.probe import Probe
from minllm.data.source import PairSource, Parts, Source, Split

Text = TypeVar("Text", str, Parts)


def hashed_into(digest: hashlib._Hash, texts: Iterable[Text]) -> Iterator[Text]:
    """Yield the texts and add each to a digest, prefixed with its length to mark where it ends.

    Given parts are also marked, so that they can't be confused with a document.
    """
    for text in texts:
        parts = ("", text) if isinstance(text, str) else text
        for number, part in enumerate(parts):
            encoded_part = part.encode()
            if number % 2 == 0:
                digest.update(b"given" * (not isinstance(text, str)))
            if number % 2 == 1 or not isinstance(text, str):
                digest.update(len(encoded_part).to_bytes(8, "little") + encoded_part)
        yield text


def append(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array's bytes; unlike `ndarray.tofile`, this raises the right `OSError` if the disk is full."""
    file.write(memoryview(np.ascontiguousarray(array)).cast("B"))


def with_progress(texts: Iterable[Text], doing: str, size: int | None) -> Iterator[Text]:
    """Yield the texts; show a progress bar on a terminal if they take more than a second."""
    from tqdm import tqdm

    options = {"unit": "B", "unit_scale": True, "delay": 1, "disable": None, "leave": False}
    with tqdm(desc=doing, total=size, **options) as bar:
        for text in texts:
            yield text
            bar.update(sum(len(part.encode()) for part in ((text,) if isinstance(text, str) else text)))


class SideFile:
    """A file that only some kinds of documents have, and the CRC-32 of what has been added to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.checksum = file, 0

    def add(self, array: np.ndarray) -> None:
        append(self.file, array)
        self.checksum = zlib.crc32(np.ascontiguousarray(array), self.checksum)


@contextlib.contextmanager
def side_files(folder: Path, split: Split, source: Source) -> Iterator[dict[str, SideFile]]:
    """Open the files of given parts and answers, if the source's documents have them."""
    names = ["given"] * isinstance(source, PairSource) + ["answers"] * isinstance(source, Probe)
    with contextlib.ExitStack() as files:
        yield {name: SideFile(files.enter_context((folder / f"{split}.{name}").open("wb"))) for name in names}
