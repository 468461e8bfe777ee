"""Batches of tokens for training and validation.

corpus = open_data(source, tokenizer)
train = corpus.train(batch_size=32, seed=0)
batch = train.batch(step)                       # depends on the seed and the step alone
for batch in corpus.validation(batch_size=32):  # every token of the validation documents exactly once
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minllm.data.packing import Layout, Piece, layout, windows
from minllm.data.source import Source
from minllm.data.store import Documents, Store, open_store, place_of
from minllm.errors import UserError
from minllm.model.context import PAD

if TYPE_CHECKING:
    from typing_extensions import Self

    from minllm.tokenizer import Tokenizer

IGNORED = -100
"""The target of a position whose prediction doesn't count towards the loss."""

ROUNDED_TO = 32  # evaluation batches have a multiple of this width, so that a compiled model sees few shapes


@dataclass(frozen=True)
class Rows:
    """A dataclass whose tensors have a row for each text."""

    def rows(self, chosen: slice | Tensor) -> Self:
        """Return some of the rows, given as a slice or by their numbers."""
        return self._changed(lambda tensor: tensor[chosen])

    def to(self, device: torch.device | str) -> Self:
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """Return a copy in pinned memory, from which a GPU reads while the host goes on."""
        return self._changed(Tensor.pin_memory)

    def copied(self) -> Self:
        return self._changed(Tensor.clone)

    def tensors(self) -> list[Tensor]:
        """Return all tensors, always in the same order."""
        tensors: list[Tensor] = []
        self._changed(lambda tensor: tensors.append(tensor) or tensor)
        return tensors

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Batch(Rows):
    """Rows of tokens in which each predicts the next.

    tokens_BT: int64, the inputs
    targets_BT: int64, the token after each; -100 at positions without a loss
    segments_BT: int64, the index of a token's document within its row, -1 for padding; None if a row is one stream,
        or one document followed by padding, which a causal model doesn't see and which has no targets
    given_BT: bool, where the token after belongs to the given part of a pair, or is known from an earlier window; those
        targets are -100. None if documents aren't pairs
    hides_answers: whether targets are answers that the row doesn't contain, so that it isn't a text with its targets
    pad_id, bos_id, eos_id: the token that rows are padded with, and those that begin and end documents
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    segments_BT: Tensor | None
    given_BT: Tensor | None = None
    pad_id: int = 0
    bos_id: int = 0
    eos_id: int = 0
    hides_answers: bool = False

    @property
    def text_BT(self) -> Tensor:
        """The token after each, int64, whether or not it counts, and `pad_id` after padding.

        The token after a row is known only if it counts, and is `pad_id` otherwise.

        Raises:
            UserError: the targets are hidden answers, which don't stand in the text.
        """
        if self.hides_answers:
            raise hidden_answers()
        after_BT = self.tokens_BT.roll(-1, dims=1)
        after_BT[:, -1] = self.pad_id
        return torch.where(self.targets_BT == IGNORED, after_BT, self.targets_BT)


def open_data(source: Source, tokenizer: Tokenizer) -> Corpus:
    """Return a corpus ready to be read; encode it first if that hasn't been done yet.

    Raises:
        UserError: the source can't be read, or its tokens can't be written.
    """
    check_data(source, tokenizer)
    return Corpus(source, open_store(source, tokenizer), tokenizer.pad_id)


def hidden_answers() -> UserError:
    """Return the error for an objective that needs answers in the text."""
    return UserError(
        "This probe's answers don't stand in its text, so only an objective that predicts them from what comes before"
        " can learn them: objective=causal."
    )


def check_data(source: Source, tokenizer: Tokenizer) -> None:
    """Check the data options early, before a corpus is encoded.

    Raises:
        UserError: evaluation would skip tokens, an option has no effect, or the documents
            aren't available and haven't been encoded yet.
    """
    if source.stride and source.stride > source.seq_len:
        raise UserError(
            f"data.stride={source.stride} would skip tokens: it can be at most data.seq_len, {source.seq_len}."
        )
    if source.truncate and source.packing == "concat":
        raise UserError(
            "data.truncate=true would do nothing with data.packing=concat: remove it, or choose pad or pack."
        )
    source.check_tokenizer(tokenizer)
    if not place_of(source, tokenizer).is_dir():
        source.check()


class Corpus:
    """A tokenized corpus in rows as given by the source's `seq_len` and `packing`.

    floor_bits_per_byte: the true entropy of the validation documents, or None if it isn't known
    chance, ceiling: of a probe, the accuracy of the best constant guess, and the best accuracy possible; else None
    """

    def __init__(self, source: Source, store: Store, pad_id: int) -> None:
        self.source, self.store, self.pad_id = source, store, pad_id
        self.floor_bits_per_byte: float | None = store.metadata["floor_bits_per_byte"]
        self.chance: float | None = store.metadata.get("chance")
        self.ceiling: float | None = store.metadata.get("ceiling")

    @functools.cached_property
    def documents(self) -> Documents:
        """The training documents."""
        return self.store.split("train")

    @functools.cached_property
    def layout(self) -> Layout:
        return layout(self.source.packing, self.documents, self.source)

    def train(self, batch_size: int, seed: int, share: range | None = None) -> TrainBatches:
        """Return the training batches, or a `share` of the rows of each."""
        documents, seq_len = self.documents, self.source.seq_len
        return TrainBatches(documents, self.layout, seq_len, self.pad_id, batch_size, seed, share)

    def validation(self, batch_size: int) -> Validation:
        documents, stride = self.store.split("val"), stride_of(self.source)
        return Validation(documents, self.source.seq_len, stride, self.pad_id, batch_size)


def stride_of(source: Source) -> int:
    """Return by how many tokens evaluation windows advance."""
    return source.stride or max(1, source.seq_len // 2)


class TrainBatches:
    """An endless sequence of batches: in each epoch, all rows in an order drawn for that epoch.

    The order depends on the seed alone. Row n of the sequence is in batch n // batch_size, so a batch may span two
    epochs.

    share: the rows of each batch that are read; others are read by other processes
    rows_per_epoch: how many rows cover the corpus once
    """

    def __init__(
        self,
        documents: Documents,
        layout: Layout,
        seq_len: int,
        pad_id: int,
        batch_size: int,
        seed: int,
        share: range | None = None,
    ) -> None:
        self.documents, self.layout, self.seq_len, self.pad_id = documents, layout, seq_len, pad_id
        self.batch_size, self.share = batch_size, range(batch_size) if share is None else share
        self.rows_per_epoch = layout.rows
        self.order = functools.lru_cache(2)(functools.partial(epoch_order, layout.rows, seed))

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Return the share of a step's batch, counted from 0, or some of its rows (a micro-batch).

        tokens_BT is (number of rows, seq_len).
        """
        first = step * self.batch_size
        numbers = range(first + self.share.start, first + self.share.stop)[rows]
        pieces = self.pieces(numbers.start, numbers.stop)
        return fill(pieces, self.documents, self.seq_len, self.pad_id, self.layout.segmented)

    def pieces(self, start: int, stop: int) -> list[Sequence[Piece]]:
        """Return rows `start` to `stop` (exclusive) of the endless sequence."""
        pieces: list[Sequence[Piece]] = []
        while start < stop:
            epoch, first = divmod(start, self.layout.rows)
            order, shift = self.order(epoch)
            pieces += self.layout.pieces(order[first : first + stop - start], shift)
            start = min(stop, (epoch + 1) * self.layout.rows)
        return pieces


def epoch_order(rows: int, seed: int, epoch: int) -> tuple[np.ndarray, float]:
    """Return the order of an epoch's rows, and the shift of its windows in [0, 1)."""
    random = np.random.default_rng([seed, epoch])
    return random.permutation(rows), random.random()


class Validation:
    """The whole validation set in batches, the same in every iteration.

    Documents are read separately, each from its start. One longer than `seq_len` is read in windows that advance by a
    stride: tokens shared with the previous window are context only and aren't predicted again. So all but the first
    tokens of a document are predicted from at least `seq_len` - stride tokens of context. Windows of similar length
    share a batch, which keeps padding low.

    batch_size: rows at a time; may be changed between iterations
    rows: the number of rows of all batches
    tokens: how many tokens are predicted, each exactly once, including each document's eos and no given part
    bytes: the size of the documents in UTF-8, of pairs that of their targets; the sum of all losses / ln 2 / bytes is
        the bits per byte
    """

    def __init__(self, documents: Documents, seq_len: int, stride: int, pad_id: int, batch_size: int) -> None:
        self.documents, self.seq_len, self.pad_id, self.batch_size = documents, seq_len, pad_id, batch_size
        self.windows = windows(documents, seq_len, stride)
        self.order = np.argsort(-self.windows.lengths, kind="stable")
        self.rows = len(self.order)
        self.tokens = documents.targets
        self.bytes = documents.bytes

    @property
    def has_answers(self) -> bool:
        """Whether documents have given parts, so that what counts are answers to them."""
        return self.documents.given is not None or self.documents.answers is not None

    @property
    def documents_of_windows(self) -> np.ndarray:
        """The number of the document of each row of all batches, in their order."""
        return (np.searchsorted(self.documents.starts, self.windows.starts, side="right") - 1)[self.order]

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches, longest windows first; tokens_BT is (at most batch_size, at most seq_len)."""
        return (batch for _, batch in self.batches())

    def batches(self, first: int = 0, every: int = 1) -> Iterator[tuple[range, Batch]]:
        """Yield every `every`-th batch from the `first` on, and the numbers of its rows among those of all batches."""
        for start in range(first * self.batch_size, len(self.order), every * self.batch_size):
            chosen = self.order[start : start + self.batch_size]
            rows = [(piece,) for piece in self.windows.pieces(chosen)]
            longest = int(self.windows.lengths[chosen[0]])
            width = min(self.seq_len, -(-longest // ROUNDED_TO) * ROUNDED_TO)
            batch = fill(rows, self.documents, width, self.pad_id, segmented=False)
            for row, known in enumerate(self.windows.known[chosen].tolist()):
                batch.targets_BT[row, :known] = IGNORED
                if batch.given_BT is not None:
                    batch.given_BT[row, :known] = True
            yield range(start, start + len(chosen)), batch


def fill(
    rows: Sequence[Sequence[Piece]], documents: Documents, width: int, pad_id: int, segmented: bool
) -> Batch:
    """Return the batch whose rows consist of these pieces from left to right, padded at the end."""
    shape = (len(rows), width)
    stream = documents.tokens.view(
        np.ndarray
    )  # slicing an ndarray takes a third of the time of slicing a memmap
    tokens_BT = np.full(shape, pad_id, np.int64)
    targets_BT = np.full(shape, IGNORED, np.int64)
    segments_BT = np.full(shape, PAD, np.int64) if segmented else None
    given_BT = None if documents.given is None else np.zeros(shape, bool)
    for row, pieces in enumerate(rows):
        at = 0
        for segment, (start, length) in enumerate(pieces):
            end = at + length
            documents.check(start, start + length + 1)
            tokens_BT[row, at:end] = stream[start : start + length]
            targets_BT[row, at:end] = stream[start + 1 : start + length + 1]
            if segments_BT is not None:
                segments_BT[row, at:end] = segment
            if documents.answers is not None:
                targets_BT[row, at:end] = documents.answers[start : start + length]
            elif given_BT is not None:
                mark_given(given_BT[row, at:end], start, documents)
            at = end
    if documents.answers is not None:
        given_BT = targets_BT == IGNORED
    elif given_BT is not None:
        targets_BT[given_BT] = IGNORED
    segments, given = (
        None if array is None else torch.from_numpy(array) for array in (segments_BT, given_BT)
    )
    start = documents.starts[0]
    bos_id, eos_id = int(stream[start]), int(stream[start + documents.lengths[0]])
    tokens, targets = torch.from_numpy(tokens_BT), torch.from_numpy(targets_BT)
    return Batch(tokens, targets, segments, given, pad_id, bos_id, eos_id, documents.hides_answers)


def mark_given(given_T: np.ndarray, start: int, documents: Documents) -> None:
    """Set the positions of a piece, which begins at `start` in the stream, whose targets are a given part."""
    assert documents.given is not None
    first = np.searchsorted(documents.starts, start, side="right") - 1
    stop = np.searchsorted(documents.starts, start + len(given_T))
    begins = documents.starts[first:stop] - start
    for begin, length in zip(begins.tolist(), documents.given[first:stop].tolist()):
        given_T[max(begin, 0) : max(begin + length, 0)] = True
