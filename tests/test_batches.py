"""Documents become rows and windows, with nothing lost, doubled or mixed up on the way."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from minllm.data.batches import Batch, check_data, open_data
from minllm.data.packing import best_fit
from minllm.errors import UserError
from minllm.tokenizer.bytes import Bytes
from tests.letters import LENGTHS, Letters, expected, tally


@pytest.fixture
def letters(tmp_path):
    def made(**options):
        return open_data(Letters(cache=str(tmp_path / "stores"), **options), Bytes())

    return made


def same(one: Batch, other: Batch) -> bool:
    pairs = [(one.tokens_BT, other.tokens_BT), (one.targets_BT, other.targets_BT)]
    if one.segments_BT is not None or other.segments_BT is not None:
        pairs.append((one.segments_BT, other.segments_BT))
    return all(torch.equal(a, b) for a, b in pairs)


PACKINGS = ("concat", "pad", "pack")


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_batch_depends_on_seed_and_step_alone(letters, packing):
    one, other = (letters(packing=packing).train(batch_size=4, seed=3) for _ in range(2))
    in_order = [one.batch(step) for step in range(9)]
    for step in (8, 2, 5, 0):
        assert same(other.batch(step), in_order[step])
    assert not all(
        same(letters(packing=packing).train(4, seed=4).batch(step), in_order[step]) for step in range(9)
    )


@pytest.mark.parametrize("packing", PACKINGS)
def test_micro_batches_and_batch_sizes_leave_the_order_of_rows_alone(letters, packing):
    corpus = letters(packing=packing)
    whole = corpus.train(6, seed=0).batch(2)
    for rows in (slice(0, 2), slice(2, 6), slice(5, None)):
        assert torch.equal(corpus.train(6, seed=0).batch(2, rows).tokens_BT, whole.tokens_BT[rows])
    pairs = [corpus.train(2, seed=0).batch(step).tokens_BT for step in (6, 7, 8)]
    assert torch.equal(torch.cat(pairs), whole.tokens_BT)


@pytest.mark.parametrize("packing", ["pad", "pack"])
def test_an_epoch_shows_every_token_once(letters, packing):
    train = letters(packing=packing).train(1, seed=0)
    for epoch in range(3):
        steps = range(epoch * train.rows_per_epoch, (epoch + 1) * train.rows_per_epoch)
        assert tally(map(train.batch, steps)) == expected("a")


def test_an_epoch_of_the_stream_shows_all_but_less_than_a_row(letters):
    train = letters(packing="concat").train(1, seed=0)
    epochs = [
        tally(map(train.batch, range(start, start + train.rows_per_epoch)))
        for start in (0, train.rows_per_epoch)
    ]
    for epoch in epochs:
        missing = expected("a") - epoch
        assert epoch <= expected("a") and missing.total() < 16
    assert epochs[0] != epochs[1], "each epoch's windows begin elsewhere"


@pytest.mark.parametrize("packing", PACKINGS)
def test_targets_are_the_next_tokens(letters, packing):
    train = letters(packing=packing).train(4, seed=1)
    for step in range(10):
        batch = train.batch(step)
        here, counted = batch.tokens_BT[:, 1:], batch.targets_BT[:, :-1] != -100
        if batch.segments_BT is not None:
            counted &= batch.segments_BT[:, 1:] == batch.segments_BT[:, :-1]
        assert torch.equal(batch.targets_BT[:, :-1][counted], here[counted])


def test_packed_documents_are_kept_apart(letters):
    train = letters(packing="pack").train(train_rows := 3, seed=0)
    shared = 0
    for step in range(2 * train.rows_per_epoch // train_rows):
        batch = train.batch(step)
        assert batch.tokens_BT.shape == (3, 16)
        for tokens, targets, segments in zip(
            batch.tokens_BT, batch.targets_BT, batch.segments_BT, strict=True
        ):
            assert torch.equal(targets == -100, segments == -1)
            kept = segments[segments >= 0]
            assert torch.equal(kept, kept.sort().values) and set(kept.tolist()) == set(
                range(int(kept.max()) + 1)
            )
            assert (segments[len(kept) :] == -1).all(), "padding comes last"
            shared += int(kept.max()) > 0
            for segment in range(int(kept.max()) + 1):
                letters_in = set(tokens[segments == segment].tolist()) | set(
                    targets[segments == segment].tolist()
                )
                assert len(letters_in - {Bytes.eos_id}) <= 1, "one document in a segment"
    assert shared, "some rows should hold several documents"


def test_a_padded_row_is_one_document(letters):
    batch = letters(packing="pad").train(40, seed=0).batch(0)
    assert batch.segments_BT is None, "what follows a document needs no segment: it is never seen"
    for tokens, targets in zip(batch.tokens_BT, batch.targets_BT, strict=True):
        length = int((targets != -100).sum())
        assert (targets[:length] != -100).all() and (targets[length:] == -100).all()
        assert torch.equal(tokens[1:length], targets[: length - 1]), "one document, from its beginning on"
        assert (tokens[length:] == Bytes.eos_id).all()


def test_the_stream_needs_no_segments_even_when_the_corpus_is_shorter_than_a_row(letters):
    batch = letters(packing="concat", seq_len=1000).train(2, seed=0).batch(0)
    assert batch.segments_BT is None
    assert batch.tokens_BT.shape == (2, 1000) and (batch.targets_BT != -100).all()


def test_best_fit_fills_rows_and_never_overfills_them():
    lengths = np.random.default_rng(0).integers(1, 257, 5000)
    filled = np.bincount(best_fit(lengths, 256), weights=lengths)
    assert filled.max() <= 256 and filled.sum() == lengths.sum() and filled.min() > 0
    assert len(filled) <= 1.01 * -(-lengths.sum() // 256)


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_order_is_the_same_for_any_number_of_workers(letters, packing):
    steps = Steps(letters(packing=packing).train(4, seed=2))

    def read(workers: int) -> torch.Tensor:
        return torch.cat(list(DataLoader(steps, batch_size=None, sampler=range(12), num_workers=workers)))

    assert torch.equal(read(0), read(1)) and torch.equal(read(0), read(2))


class Steps(torch.utils.data.Dataset):
    """Batches by their step, as a loader with workers asks for them."""

    def __init__(self, train):
        self.train = train

    def __getitem__(self, step):
        return self.train.batch(step).tokens_BT


def test_truncation_keeps_beginnings(letters):
    for packing in ("pad", "pack"):
        train = letters(packing=packing, truncate=True).train(1, seed=0)
        seen = tally(map(train.batch, range(train.rows_per_epoch)))
        kept = {ord("a") + number: min(length, 16) for number, length in enumerate(LENGTHS)}
        ends = sum(length < 16 for length in LENGTHS)
        assert seen == Counter({**kept, Bytes.eos_id: ends})


@pytest.mark.parametrize("seq_len", [4, 16, 100])
@pytest.mark.parametrize("packing", PACKINGS)
def test_the_shares_that_are_told_are_those_that_are_seen(letters, packing, seq_len):
    """Counted in the batches themselves, without a shift of the stream's windows."""
    for truncate in (False,) if packing == "concat" else (False, True):
        corpus = letters(packing=packing, seq_len=seq_len, truncate=truncate)
        train = corpus.train(1, seed=0)
        train.order = lambda epoch: (np.arange(train.rows_per_epoch), 0.0)  # noqa: B023
        batches = [train.batch(step) for step in range(train.rows_per_epoch)]
        shown = sum(int((batch.targets_BT != -100).sum()) for batch in batches)
        cut_off = sum(map(tokens_without_beginning, batches))
        shares, places = corpus.layout.shares(), train.rows_per_epoch * seq_len
        total = sum(LENGTHS) + len(LENGTHS)
        assert shares.padding == pytest.approx(1 - shown / places)
        assert shares.truncated == pytest.approx(1 - min(shown, total) / total)
        assert shares.beheaded == pytest.approx(cut_off / shown)


def tokens_without_beginning(batch: Batch) -> int:
    """Count the targets of a row that follow neither a document's beginning nor what does."""
    count = 0
    segments = torch.zeros_like(batch.tokens_BT) if batch.segments_BT is None else batch.segments_BT
    for segment in segments.unique():
        row = batch.tokens_BT[(segments == segment) & (batch.targets_BT != -100)]
        begins = torch.nonzero(row == Bytes.bos_id)
        count += int(begins[0]) if len(begins) else len(row)
    return count


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_validation_predicts_every_token_once(letters, batch_size):
    validation = letters().validation(batch_size)
    batches = list(validation)
    assert tally(batches) == expected("A")
    assert validation.tokens == sum(LENGTHS) + len(LENGTHS) and validation.bytes == sum(LENGTHS)
    assert len(batches) == len(validation)
    assert all(same(one, other) for one, other in zip(batches, validation, strict=True))
    for batch in batches:
        for tokens, targets in zip(batch.tokens_BT, batch.targets_BT, strict=True):
            assert len(set(tokens.tolist()) | set(targets.tolist()) - {-100} - {Bytes.eos_id}) <= 2


def test_validation_reads_long_documents_in_strides(letters):
    corpus = letters(stride=6)
    longest = ord("A") + LENGTHS.index(90)
    rows = [row for batch in corpus.validation(5) for row in zip(batch.tokens_BT, batch.targets_BT)]
    of_longest = [targets != -100 for tokens, targets in rows if longest in tokens.tolist()]
    assert sum(map(int, map(torch.sum, of_longest))) == 91, "its 90 bytes and its end"
    assert sorted(int(predicted.sum()) for predicted in of_longest) == [3, *[6] * 12, 16]
    for predicted in of_longest:
        context = int(torch.nonzero(predicted)[0])
        assert context in (0, 10) and predicted[context : context + int(predicted.sum())].all()


def test_validation_windows_that_share_nothing(letters):
    lengths = [
        int((targets != -100).sum())
        for batch in letters(stride=16).validation(1)
        for targets in batch.targets_BT
        if ord("A") + LENGTHS.index(90) in targets.tolist()
    ]
    assert sorted(lengths, reverse=True) == [16] * 5 + [11]
    with pytest.raises(UserError, match="skip tokens"):
        letters(stride=17).validation(1)


def test_truncating_a_stream_is_refused(tmp_path):
    source = Letters(cache=str(tmp_path), packing="concat", truncate=True)
    with pytest.raises(UserError, match=r"data\.truncate=true would do nothing with data\.packing=concat"):
        check_data(source, Bytes())
