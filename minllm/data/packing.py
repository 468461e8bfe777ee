"""How rows of `seq_len` tokens are made of documents: three layouts, each an epoch's rows by number.

A row is a list of pieces `(start, length)` of the stream of inputs that `minllm.data.store` describes.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from minllm.data.store import Documents

Piece = tuple[int, int]  # where in the stream it starts, how many tokens it has


class Layout(Protocol):
    """An epoch's rows; there are `rows` of them in every epoch."""

    rows: int
    segmented: bool  # whether a row holds pieces that must be kept apart

    def pieces(self, row: int, shift: float) -> list[Piece]:
        """Return a row's pieces. `shift`, from 0 up to 1, is the epoch's own."""
        ...


class Concat:
    """Windows of the endless stream, which goes in a circle: the last eot is the first.

    Where the first window starts differs by epoch, so that documents aren't always cut in the same places.
    """

    segmented = False

    def __init__(self, documents: Documents, seq_len: int) -> None:
        self.seq_len = seq_len
        self.total = len(documents.tokens) - 1
        self.rows = max(1, self.total // seq_len)

    def pieces(self, row: int, shift: float) -> list[Piece]:
        start = (int(shift * self.seq_len) + row * self.seq_len) % self.total
        found, missing = [], self.seq_len
        while missing:
            length = min(missing, self.total - start)
            found.append((start, length))
            start, missing = 0, missing - length
        return found


class Pad:
    """Each document by itself, in as many rows as it needs.

    What follows a document is padding that it never sees, so no segments are needed to keep it apart.
    """

    segmented = False

    def __init__(self, documents: Documents, seq_len: int) -> None:
        self.starts, self.lengths = windows(documents.starts, seq_len)
        self.rows = len(self.starts)

    def pieces(self, row: int, shift: float) -> list[Piece]:
        return [(int(self.starts[row]), int(self.lengths[row]))]


class Pack:
    """Documents fitted into rows, whole if they are no longer than a row: best fit, longest first.

    Each goes where it leaves the least room, which fills nearly every place where there are short documents.
    """

    segmented = True

    def __init__(self, documents: Documents, seq_len: int) -> None:
        self.starts, self.lengths = windows(documents.starts, seq_len)
        self.filled = best_fit(self.lengths, seq_len)
        self.rows = len(self.filled)

    def pieces(self, row: int, shift: float) -> list[Piece]:
        return [(int(self.starts[one]), int(self.lengths[one])) for one in self.filled[row]]


def windows(starts: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut documents into consecutive windows of at most `seq_len` tokens; return each window's start and length.

    Each token, a document's final eot included, is the target in exactly one window.
    """
    starts = np.asarray(starts)
    lengths = np.diff(starts)
    counts = -(-lengths // seq_len)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    before = (np.arange(len(first)) - first) * seq_len
    return np.repeat(starts[:-1], counts) + before, np.minimum(np.repeat(lengths, counts) - before, seq_len)


def best_fit(lengths: np.ndarray, size: int) -> list[list[int]]:
    """Return rows of the numbers of pieces, so that no row's lengths add up to more than `size`."""
    filled: list[list[int]] = []
    with_room: list[list[int]] = [
        [] for _ in range(size + 1)
    ]  # by how much room they have, the rows that have it
    rooms = 0  # bit r is set if a row has room r, so the least room that is enough is found at once
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        if enough := rooms >> length:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            rooms ^= (not with_room[room]) << room
            filled[row].append(piece)
        else:
            room, row = size, len(filled)
            filled.append([piece])
        with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return filled
