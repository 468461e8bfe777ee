"""Packing documents into rows of `seq_len` tokens: three layouts, each of which gives the rows of an epoch.

A row is a list of pieces `(start, length)` of the token stream described in `minllm.data.store`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from minllm.data.source import Packing, Source
from minllm.data.store import Documents
from minllm.errors import UserError

Piece = tuple[int, int]  # (start in the stream, number of tokens)


def layout(packing: Packing, documents: Documents, source: Source) -> Layout:
    """Return the layout for `packing`, the source's option."""
    if packing == "concat":
        return Concat(documents, source.seq_len)
    return {"pad": Pad, "pack": Pack}[packing](documents, source.seq_len, source.truncate)


class Layout(Protocol):
    """The rows of an epoch: `rows` of them in every epoch, each with room for `seq_len` tokens."""

    rows: int
    segmented: bool  # whether a row has several documents that must not see each other

    def pieces(self, rows: np.ndarray, shift: float) -> list[Sequence[Piece]]:
        """Return the pieces of some rows. `shift`, in [0, 1), is drawn for each epoch."""
        ...

    def shares(self) -> Shares:
        """Return how well rows and tokens are used."""
        ...


@dataclass(frozen=True)
class Shares:
    """How well a layout uses rows and documents, as fractions from 0 to 1.

    padding: of the positions in rows, those that are padding
    truncated: of the documents' tokens, those in no row
    beheaded: of the tokens in rows, those whose document begins in another row
    """

    padding: float
    truncated: float
    beheaded: float

    def __str__(self) -> str:
        return (
            f"{self.padding:.1%} padding, {self.truncated:.1%} of the tokens truncated,"
            f" {self.beheaded:.1%} cut off from their document's beginning"
        )


class Concat:
    """Windows of the stream, which wraps around: the final bos is the first one.

    The first window starts elsewhere in each epoch, so that documents aren't always cut at the same positions.
    """

    segmented = False

    def __init__(self, documents: Documents, seq_len: int) -> None:
        self.starts, self.seq_len = documents.starts, seq_len
        self.total = len(documents.tokens) - 1
        self.rows = max(1, self.total // seq_len)

    def pieces(self, rows: np.ndarray, shift: float) -> list[Sequence[Piece]]:
        starts = (int(shift * self.seq_len) + rows * self.seq_len) % self.total
        return [self.around(start) for start in starts.tolist()]

    def around(self, start: int) -> list[Piece]:
        """Return the row that starts at `start`, wrapping around at the end of the stream."""
        pieces, missing = [], self.seq_len
        while missing:
            length = min(missing, self.total - start)
            pieces.append((start, length))
            start, missing = 0, missing - length
        return pieces

    def shares(self) -> Shares:
        shown = min(self.rows * self.seq_len, self.total)
        cuts = np.arange(self.seq_len, shown, self.seq_len)
        next_start = self.starts[np.searchsorted(self.starts, cuts)]
        beheaded = np.minimum(next_start - cuts, self.seq_len).sum()
        return Shares(0.0, 1 - shown / self.total, float(beheaded / shown))


class Pad:
    """Each document in rows of its own, as many as it needs.

    Padding follows the document, which never sees it, so no segments are needed.
    """

    segmented = False

    def __init__(self, documents: Documents, seq_len: int, truncate: bool = False) -> None:
        self.windows = windows(documents, seq_len, truncate=truncate)
        self.rows = len(self.windows.starts)

    def pieces(self, rows: np.ndarray, shift: float) -> list[Sequence[Piece]]:
        return [(piece,) for piece in self.windows.pieces(rows)]

    def shares(self) -> Shares:
        return self.windows.shares(self.rows)


class Pack:
    """Documents packed into rows by best fit, longest first; those that fit into a row stay whole.

    Each goes into the row in which it leaves the least room. With enough short documents, there's almost no padding.
    """

    segmented = True

    def __init__(self, documents: Documents, seq_len: int, truncate: bool = False) -> None:
        self.windows = windows(documents, seq_len, truncate=truncate)
        row_of = best_fit(self.windows.lengths, seq_len)
        by_row = np.argsort(row_of, kind="stable")
        self.starts, self.lengths = self.windows.starts[by_row], self.windows.lengths[by_row]
        self.first = np.searchsorted(
            row_of[by_row], np.arange(row_of.max() + 2)
        )  # index of each row's first piece
        self.rows = len(self.first) - 1

    def pieces(self, rows: np.ndarray, shift: float) -> list[Sequence[Piece]]:
        bounds = zip(self.first[rows].tolist(), self.first[rows + 1].tolist())
        return [list(zip(self.starts[a:b].tolist(), self.lengths[a:b].tolist())) for a, b in bounds]

    def shares(self) -> Shares:
        return self.windows.shares(self.rows)


@dataclass(frozen=True)
class Windows:
    """Documents cut into windows of at most `seq_len` tokens. Each token except bos is a target in one window, or
    in none if documents are truncated.

    starts: the start of each window in the stream
    lengths: number of tokens of each window
    known: how many of its first targets belong to the previous window, and are only context here
    is_first: whether it's the first window of its document
    tokens: total number of targets of the documents
    """

    starts: np.ndarray
    lengths: np.ndarray
    known: np.ndarray
    is_first: np.ndarray
    seq_len: int
    tokens: int

    def pieces(self, numbers: np.ndarray) -> list[Piece]:
        return list(zip(self.starts[numbers].tolist(), self.lengths[numbers].tolist()))

    def shares(self, rows: int) -> Shares:
        shown, beginnings = int(self.lengths.sum()), int(self.lengths[self.is_first].sum())
        return Shares(1 - shown / (rows * self.seq_len), 1 - shown / self.tokens, 1 - beginnings / shown)


def windows(documents: Documents, seq_len: int, stride: int | None = None, truncate: bool = False) -> Windows:
    """Cut documents into windows: the first starts with the document, each of the others `stride` tokens later:

        ─────────── seq_len
            ░░░░░░░─────  new tokens (a stride); those before are context
                ░░░░░░░──

    stride: None: `seq_len`, so that windows don't overlap
    truncate: whether to keep only the first window of each document

    Windows of a pair that end before its target begins are left out, because they have nothing to predict.

    Raises:
        UserError: no window is left.
    """
    stride = stride or seq_len
    counts = 1 + np.maximum(0, -(-(documents.lengths - seq_len) // stride))
    if truncate:
        counts = np.ones_like(counts)
    before = np.cumsum(counts) - counts
    number = np.arange(counts.sum()) - np.repeat(before, counts)  # of a window in its document
    left = np.repeat(documents.lengths, counts) - number * stride
    starts, lengths = np.repeat(documents.starts[:-1], counts) + number * stride, np.minimum(left, seq_len)
    if documents.given is not None:
        has_targets = number * stride + lengths > np.repeat(documents.given, counts)
        if not has_targets.any():
            raise UserError(
                f"No target begins in the first data.seq_len={seq_len} tokens of its document, and data.truncate=true"
                " leaves the rest out. Increase data.seq_len, or type data.truncate=false."
            )
        starts, lengths, number = starts[has_targets], lengths[has_targets], number[has_targets]
    return Windows(
        starts=starts,
        lengths=lengths,
        known=np.where(number > 0, seq_len - stride, 0),
        is_first=number == 0,
        seq_len=seq_len,
        tokens=int(documents.lengths.sum()),
    )


def best_fit(lengths: np.ndarray, size: int) -> np.ndarray:
    """Return each piece's row, so that no row's lengths add up to more than `size`."""
    row_of = np.empty(len(lengths), np.int64)
    with_room: list[list[int]] = [
        [] for _ in range(size + 1)
    ]  # with_room[r]: the rows with room for r more tokens
    rooms = 0  # bit r is set if a row has room r, so the smallest sufficient room is found at once
    rows = 0
    longest_first = np.argsort(-lengths, kind="stable")
    for piece, length in zip(longest_first.tolist(), lengths[longest_first].tolist()):
        if enough := rooms >> length:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            rooms ^= (not with_room[room]) << room
        else:
            room, row = size, rows
            rows += 1
        row_of[piece] = row
        with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return row_of
