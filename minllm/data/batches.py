"""Batches of tokens to learn from and to be judged by.

corpus = open_data(source, tokenizer)
train = corpus.train(batch_size=32, seed=0)
batch = train.batch(step)                       # the same for the same seed and step, always and anywhere
for batch in corpus.validation(batch_size=32):  # every token of the validation documents, once
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minllm.data.packing import Layout, Piece, layout, windows
from minllm.data.source import Source
from minllm.data.store import Documents, Store, open_store, place_of
from minllm.errors import UserError
from minllm.model.context import PAD
from minllm.objective.cross_entropy import IGNORED
from minllm.tokenizer import Tokenizer

ROUNDED_TO = 32  # widths of evaluation batches, so that a compiled model meets only a few


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, each predicting the next.

    tokens_BT: int64, the input
    targets_BT: int64, the token after each; -100 where no loss counts
    segments_BT: int64, the number of a token's document along its row, -1 for padding; None if a row is one stream,
        or one document and then padding, which a causal model doesn't see and no target counts
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    segments_BT: Tensor | None

    def to(self, device: torch.device | str) -> Batch:
        segments = None if self.segments_BT is None else self.segments_BT.to(device, non_blocking=True)
        return replace(
            self,
            tokens_BT=self.tokens_BT.to(device, non_blocking=True),
            targets_BT=self.targets_BT.to(device, non_blocking=True),
            segments_BT=segments,
        )


def open_data(source: Source, tokenizer: Tokenizer) -> Corpus:
    """Return a corpus ready to be read; its tokens are encoded first if they haven't been yet.

    Raises:
        UserError: the source can't be read, or its tokens can't be written.
    """
    check_data(source, tokenizer)
    return Corpus(source, open_store(source, tokenizer), tokenizer.pad_id)


def check_data(source: Source, tokenizer: Tokenizer) -> None:
    """Refuse soon what can't be: before anything else is done, and before a corpus is encoded.

    Raises:
        UserError: evaluation would pass over tokens, or the documents can't be had and there's no store of them yet.
    """
    if source.stride and source.stride > source.seq_len:
        raise UserError(
            f"data.stride={source.stride} would pass over tokens: give at most data.seq_len, {source.seq_len}."
        )
    if not place_of(source, tokenizer).is_dir():
        source.check()


class Corpus:
    """A corpus as tokens, in the rows that the source's `seq_len` and `packing` ask for.

    floor_bits_per_byte: the true entropy of the validation documents, if the source knows it
    """

    def __init__(self, source: Source, store: Store, pad_id: int) -> None:
        self.source, self.store, self.pad_id = source, store, pad_id
        self.floor_bits_per_byte: float | None = store.metadata["floor_bits_per_byte"]

    @functools.cached_property
    def documents(self) -> Documents:
        """Those to learn from."""
        return self.store.split("train")

    @functools.cached_property
    def layout(self) -> Layout:
        return layout(self.source.packing, self.documents, self.source)

    def train(self, batch_size: int, seed: int) -> TrainBatches:
        return TrainBatches(self.documents, self.layout, self.source.seq_len, self.pad_id, batch_size, seed)

    def validation(self, batch_size: int) -> Validation:
        documents, stride = self.store.split("val"), stride_of(self.source)
        return Validation(documents, self.source.seq_len, stride, self.pad_id, batch_size)


def stride_of(source: Source) -> int:
    """Return how many tokens the windows of evaluation go on by."""
    return source.stride or max(1, source.seq_len // 2)


class TrainBatches:
    """An endless sequence of batches: epoch after epoch, all rows in an order drawn for that epoch.

    The order depends on the seed alone, and row n of the sequence is in batch n // batch_size, which may begin in one
    epoch and end in the next.

    rows_per_epoch: how many rows show the corpus once
    """

    def __init__(
        self, documents: Documents, layout: Layout, seq_len: int, pad_id: int, batch_size: int, seed: int
    ) -> None:
        self.documents, self.layout, self.seq_len, self.pad_id = documents, layout, seq_len, pad_id
        self.batch_size = batch_size
        self.rows_per_epoch = layout.rows
        self.order = functools.lru_cache(2)(functools.partial(epoch_order, layout.rows, seed))

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Return the batch of a step, which counts from 0, or some of its rows: a micro-batch.

        tokens_BT is (number of rows, seq_len).
        """
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        pieces = self.pieces(numbers.start, numbers.stop)
        return fill(pieces, self.documents, self.seq_len, self.pad_id, self.layout.segmented)

    def pieces(self, start: int, stop: int) -> list[Sequence[Piece]]:
        """Return the rows from number `start` up to `stop`, of as many epochs as they reach over."""
        found: list[Sequence[Piece]] = []
        while start < stop:
            epoch, place = divmod(start, self.layout.rows)
            order, shift = self.order(epoch)
            found += self.layout.pieces(order[place : place + stop - start], shift)
            start = min(stop, (epoch + 1) * self.layout.rows)
        return found


def epoch_order(rows: int, seed: int, epoch: int) -> tuple[np.ndarray, float]:
    """Return the order of an epoch's rows, and how far its windows are shifted."""
    random = np.random.default_rng([seed, epoch])
    return random.permutation(rows), random.random()


class Validation:
    """The whole validation set in batches, always the same; iterate over it as often as you like.

    Each document stands alone, read from its start. One longer than `seq_len` is read in windows that go on by a
    stride: what a window has in common with the one before is context and is not predicted again. So all but a
    document's first tokens are predicted from `seq_len` - stride or more. Windows of similar length share a batch, so
    there's little padding.

    batch_size: rows at a time; may be changed between iterations
    tokens: how many are predicted, each exactly once, with the eos that ends each document
    bytes: the length of the documents in UTF-8; the sum of all losses / ln 2 / bytes is the bits per byte
    """

    def __init__(self, documents: Documents, seq_len: int, stride: int, pad_id: int, batch_size: int) -> None:
        self.documents, self.seq_len, self.pad_id, self.batch_size = documents, seq_len, pad_id, batch_size
        self.windows = windows(documents, seq_len, stride)
        self.order = np.argsort(-self.windows.lengths, kind="stable")
        self.tokens = int(documents.lengths.sum())
        self.bytes = documents.bytes

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches, the longest windows first; tokens_BT is (at most batch_size, at most seq_len)."""
        for start in range(0, len(self.order), self.batch_size):
            chosen = self.order[start : start + self.batch_size]
            rows = [(piece,) for piece in self.windows.pieces(chosen)]
            longest = int(self.windows.lengths[chosen[0]])
            width = min(self.seq_len, -(-longest // ROUNDED_TO) * ROUNDED_TO)
            batch = fill(rows, self.documents, width, self.pad_id, segmented=False)
            for targets_T, known in zip(batch.targets_BT, self.windows.known[chosen].tolist()):
                targets_T[:known] = IGNORED
            yield batch


def fill(
    rows: Sequence[Sequence[Piece]], documents: Documents, width: int, pad_id: int, segmented: bool
) -> Batch:
    """Return the batch with these pieces in its rows, from left to right, and padding after them."""
    shape = (len(rows), width)
    stream = documents.tokens.view(np.ndarray)  # whose slices take a third of the time that a memmap's do
    tokens_BT = np.full(shape, pad_id, np.int64)
    targets_BT = np.full(shape, IGNORED, np.int64)
    segments_BT = np.full(shape, PAD, np.int64) if segmented else None
    for row, pieces in enumerate(rows):
        at = 0
        for segment, (start, length) in enumerate(pieces):
            end = at + length
            documents.check(start, start + length + 1)
            tokens_BT[row, at:end] = stream[start : start + length]
            targets_BT[row, at:end] = stream[start + 1 : start + length + 1]
            if segments_BT is not None:
                segments_BT[row, at:end] = segment
            at = end
    segments = None if segments_BT is None else torch.from_numpy(segments_BT)
    return Batch(torch.from_numpy(tokens_BT), torch.from_numpy(targets_BT), segments)
