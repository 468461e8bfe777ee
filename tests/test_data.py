"""Text becomes documents, a store of tokens and batches, with nothing lost, doubled or mixed up on the way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from minllm.data import store as store_module
from minllm.data.batches import Batch, open_data
from minllm.data.encoding import encoded
from minllm.data.packing import best_fit
from minllm.data.source import Source, Split
from minllm.data.store import open_store
from minllm.data.text import TextFiles
from minllm.errors import UserError
from minllm.tokenizer.bytes import Bytes

REPOSITORY = Path(__file__).resolve().parents[1]
LENGTHS = (3, 40, 7, 16, 15, 1, 90, 12, 5, 31, 33, 8)  # in tokens, around the seq_len of 16


@dataclass(frozen=True, kw_only=True)
class Letters(Source):
    """Documents of one letter each, so that a token tells which document it's from."""

    seq_len: int = 16

    @property
    def fingerprint(self) -> str:
        return "letters"

    def documents(self, split: Split) -> Iterator[str]:
        first = "a" if split == "train" else "A"
        for number, length in enumerate(LENGTHS):
            yield chr(ord(first) + number) * length

    def floor_bits_per_byte(self) -> float | None:
        return 0.25


@pytest.fixture
def letters(tmp_path):
    def made(**options):
        return open_data(Letters(cache=str(tmp_path / "stores"), **options), Bytes())

    return made


def tally(batches) -> Counter[int]:
    return Counter(int(target) for batch in batches for target in batch.targets_BT[batch.targets_BT != -100])


def expected(first: str) -> Counter[int]:
    counts = {ord(first) + number: length for number, length in enumerate(LENGTHS)}
    return Counter({**counts, Bytes.eos_id: len(LENGTHS)})


def same(one: Batch, other: Batch) -> bool:
    pairs = [(one.tokens_BT, other.tokens_BT), (one.targets_BT, other.targets_BT)]
    if one.segments_BT is not None or other.segments_BT is not None:
        pairs.append((one.segments_BT, other.segments_BT))
    return all(torch.equal(a, b) for a, b in pairs)


# ---- batches --------------------------------------------------------------------------------------------------------

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
    for truncate in (False, True):
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
    with pytest.raises(UserError, match="pass over tokens"):
        letters(stride=17).validation(1)


# ---- the store ------------------------------------------------------------------------------------------------------


def test_a_store_holds_the_documents(tmp_path):
    store = open_store(Letters(cache=str(tmp_path)), Bytes())
    documents = store.split("train")
    assert documents.tokens.dtype == np.uint16 and len(documents.starts) == len(LENGTHS) + 1
    for number, start in enumerate(documents.starts[:-1]):
        stop = documents.starts[number + 1]
        assert documents.tokens[start] == Bytes.eos_id == documents.tokens[stop]
        assert set(documents.tokens[start + 1 : stop].tolist()) == {ord("a") + number}
    assert documents.bytes == sum(LENGTHS) and documents.lengths.tolist() == [n + 1 for n in LENGTHS]
    assert store.metadata["floor_bits_per_byte"] == 0.25


def test_a_store_is_built_once_and_serves_every_layout(tmp_path, monkeypatch):
    first = open_store(Letters(cache=str(tmp_path)), Bytes())
    monkeypatch.setattr(store_module, "write_store", None)
    assert open_store(Letters(cache=str(tmp_path), seq_len=99, packing="pack"), Bytes()) == first


def test_a_large_vocabulary_takes_larger_numbers(tmp_path):
    class Large(Bytes):
        vocab_size, bos_id, eos_id, fingerprint = 70_000, 69_999, 69_999, "large"
        table = [*Bytes.table[:256], *[b""] * (70_000 - 256)]

    documents = open_store(Letters(cache=str(tmp_path)), Large()).split("val")
    assert documents.tokens.dtype == np.uint32 and documents.tokens[0] == 69_999


KILLED = """
import os, signal, sys
from minllm.data.source import Source
from minllm.data.store import open_store
from minllm.tokenizer.bytes import Bytes

class Dying(Source):
    fingerprint = "letters"

    def documents(self, split):
        yield from ("text" for _ in range(1000))
        heavy = {"torch", "datasets", "pandas", "pyarrow", "transformers"} & set(sys.modules)
        print("imports", heavy or "little", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

open_store(Dying(cache=sys.argv[1]), Bytes())
"""


def test_a_killed_build_leaves_no_store_and_is_in_nobodys_way(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert killed.returncode == -9
    assert killed.stdout == "imports little\n"
    assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] == [".tmp"]
    store = open_store(Letters(cache=str(tmp_path)), Bytes())
    assert store.metadata["splits"]["train"]["documents"] == len(LENGTHS)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [store.folder], (
        "what was left is removed"
    )


BUILDING = """
import sys, time
from tests.test_data import Letters
from minllm.data.store import open_store
from minllm.tokenizer.bytes import Bytes

class Slow(Letters):
    def documents(self, split):
        print("builds", flush=True)
        time.sleep(0.5)
        return super().documents(split)

open_store(Slow(cache=sys.argv[1]), Bytes())
"""


def test_two_processes_share_one_build(tmp_path):
    command = [sys.executable, "-c", BUILDING, str(tmp_path)]
    options = dict(cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    printed = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert sorted(out for out, _ in printed) == ["", "builds\nbuilds\n"], "a line for each split"
    assert "Another process" in "".join(error for _, error in printed)


@dataclass(frozen=True, kw_only=True)
class Many(Source):
    """Enough text that other processes help to encode it."""

    @property
    def fingerprint(self) -> str:
        return "many"

    def documents(self, split: Split) -> Iterator[str]:
        for number in range(400 if split == "train" else 2):
            yield f"{number} é " * 700


def test_the_same_store_whatever_the_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("minllm.data.encoding.AT_ONCE", 20_000)
    monkeypatch.setattr("minllm.data.encoding.ALONE", 3)
    stores = [open_store(Many(cache=str(tmp_path / str(n)), num_proc=n), Bytes()) for n in (1, 2)]
    for name in ("train.tokens", "train.starts", "val.tokens", "meta.json"):
        assert (stores[0].folder / name).read_bytes() == (stores[1].folder / name).read_bytes()


ORPHANED = """
import os, signal, sys
import minllm.data.encoding as encoding
from minllm.tokenizer.bytes import Bytes

encoding.AT_ONCE, encoding.ALONE = 1, 1
encoder = encoding.encoded((f"text {n}" for n in range(1000)), Bytes(), 2)
for _ in range(4):
    next(encoder)
children = open(f"/proc/self/task/{os.getpid()}/children").read()
print(children, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc to see processes in")
def test_processes_that_encode_end_with_the_one_that_is_killed():
    done = subprocess.run([sys.executable, "-c", ORPHANED], cwd=REPOSITORY, capture_output=True, text=True)
    children = [Path(f"/proc/{pid}/cmdline") for pid in done.stdout.split()]
    assert done.returncode == -9 and len(children) >= 2, done.stderr

    def left() -> list[Path]:
        return [child for child in children if child.exists() and b"multiprocessing" in child.read_bytes()]

    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left()


def test_a_process_that_is_killed_is_said(monkeypatch):
    monkeypatch.setattr("minllm.data.encoding.AT_ONCE", 1)
    monkeypatch.setattr("minllm.data.encoding.ALONE", 1)
    with pytest.raises(UserError, match="was killed.*data.num_proc=1"):
        list(encoded((f"text {n}" for n in range(50)), Deadly(), 2))


class Deadly(Bytes):
    """Kills the process that encodes the tenth text."""

    def encode_texts(self, texts):
        texts = list(texts)
        if texts == ["text 9"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_texts(texts)


def test_a_tokenizer_that_loses_something_is_refused(tmp_path):
    class Lossy(Bytes):
        def encode_texts(self, texts):
            return super().encode_texts([text.replace("k", "") for text in texts])

    with pytest.raises(UserError, match="loses something of 'k"):
        open_store(Letters(cache=str(tmp_path)), Lossy())


class TwoEnds(Bytes):
    """Documents begin with another token than they end with."""

    vocab_size, bos_id, fingerprint = 258, 257, "two ends"
    table = [*Bytes.table, b""]


@pytest.mark.parametrize("packing", ["pad", "pack"])
def test_a_tokenizer_may_begin_and_end_documents_differently(tmp_path, packing):
    corpus = open_data(Letters(cache=str(tmp_path), packing=packing, seq_len=100), TwoEnds())
    train = corpus.train(1, seed=0)
    batches = [train.batch(step) for step in range(train.rows_per_epoch)]
    assert tally(batches) == expected("a"), "each document's text and its end, and never its beginning"
    read = Counter(int(token) for batch in batches for token in batch.tokens_BT[batch.targets_BT != -100])
    assert read[TwoEnds.bos_id] == len(LENGTHS) and read[TwoEnds.eos_id] == 0


def test_max_tokens_keeps_the_first_documents_that_fit(tmp_path):
    store = open_store(Letters(cache=str(tmp_path), max_tokens=70), Bytes())
    assert store.metadata["splits"]["train"] | {"sha256": ""} == {
        "documents": 4,
        "tokens": 3 + 40 + 7 + 16 + 4 + 1,
        "bytes": 3 + 40 + 7 + 16,
        "sha256": "",
    }
    assert store.metadata["splits"]["val"]["documents"] == len(LENGTHS)
    assert open_store(Letters(cache=str(tmp_path)), Bytes()).folder != store.folder
    with pytest.raises(UserError, match="no room for a document"):
        open_store(Letters(cache=str(tmp_path), max_tokens=3), Bytes())


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(file, array):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "append", full)
    with pytest.raises(UserError, match="No space left on device.*data.cache="):
        open_store(Letters(cache=str(tmp_path)), Bytes())
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        open_store(Letters(cache=str(tmp_path / "file" / "stores")), Bytes())


def test_a_source_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text"')
    cache = tmp_path / "stores"
    with pytest.raises(UserError, match="line 2 is not JSON"):
        open_store(TextFiles(path=str(tmp_path / "bad.jsonl"), cache=str(cache)), Bytes())
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_corpus_that_changes_meanwhile_makes_no_store(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"text {number}"}) for number in range(99)))

    class Changing(TextFiles):
        def documents(self, split: Split) -> Iterator[str]:
            yield from super().documents(split)
            path.write_text(path.read_text().replace("text 9", "text 8"))

    with pytest.raises(UserError, match="has changed while it was encoded"):
        open_store(Changing(path=str(path), cache=str(tmp_path / "stores")), Bytes())
    assert not [folder for folder in (tmp_path / "stores").iterdir() if folder.is_dir()]


def test_a_source_without_documents_is_said(tmp_path):
    class Empty(Letters):
        def documents(self, split: Split) -> Iterator[str]:
            return iter(())

    with pytest.raises(UserError, match="no document for training"):
        open_store(Empty(cache=str(tmp_path)), Bytes())


def test_a_damaged_store_is_said(tmp_path):
    store = open_store(Letters(cache=str(tmp_path)), Bytes())
    (store.folder / "train.tokens").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged. Delete"):
        store.split("train")
    for content in ("{", "{}", "[]"):
        (store.folder / "meta.json").write_text(content)
        with pytest.raises(UserError, match="damaged. Delete"):
            open_store(Letters(cache=str(tmp_path)), Bytes())


# ---- your own files -------------------------------------------------------------------------------------------------


def both(source: TextFiles) -> tuple[list[str], list[str]]:
    return list(source.documents("train")), list(source.documents("val"))


def test_a_text_is_held_out_from_a_line_on(tmp_path):
    text = "".join(f"Line {number}, naïve\r\n" for number in range(1000))
    (tmp_path / "one.txt").write_bytes(text.encode())
    (train,), (val,) = both(TextFiles(path=str(tmp_path / "one.txt")))
    assert train + val == text and train.endswith("\r\n")
    assert 0.08 < len(val) / len(text) < 0.1


@pytest.mark.parametrize(
    "text", ["words and no lines " * 9, "日" * 99, "one line\n" + "and another of words " * 9]
)
def test_a_text_that_ends_with_its_line_is_cut_at_a_word(tmp_path, text):
    (tmp_path / "one.txt").write_text(text + "\n", encoding="utf-8")
    (train,), (val,) = both(TextFiles(path=str(tmp_path / "one.txt"), val_fraction=0.2))
    assert train + val == text + "\n" and 0.1 < len(val) / len(text) < 0.3


@pytest.mark.parametrize("character", ["ü", "日", "ab "])
def test_a_long_text_without_lines_is_cut_between_characters(tmp_path, monkeypatch, character):
    monkeypatch.setattr("minllm.data.text.PIECE", 100)
    (tmp_path / "one.txt").write_text(character * 500, encoding="utf-8")
    train, val = both(TextFiles(path=str(tmp_path / "one.txt")))
    assert "".join(train + val) == character * 500 and len(train) > 5
    assert max(len(text.encode()) for text in train + val) <= 100


def test_a_separator_makes_documents(tmp_path, monkeypatch):
    stories = [f"Story {number}\n\nThe end." for number in range(200)]
    (tmp_path / "many.txt").write_text("\n<|endoftext|>\n".join(stories))
    monkeypatch.setattr("minllm.data.text.PIECE", 64)
    train, val = both(TextFiles(path=str(tmp_path / "many.txt"), separator="<|endoftext|>"))
    assert sorted(train + val) == sorted(stories) and 5 < len(val) < 45


def test_jsonl_and_parquet_hold_the_same(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = [f"Document {number} – über\n" for number in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"story": text}) for text in texts) + "\n\n")
    pyarrow.parquet.write_table(
        pyarrow.table({"story": [*texts, None], "n": range(301)}), tmp_path / "a.parquet"
    )
    train, val = both(TextFiles(path=str(tmp_path / "a.jsonl"), field="story", val_fraction=0.2))
    assert Counter(train + val) == Counter(texts) and 30 < len(val) < 90
    assert both(TextFiles(path=str(tmp_path / "a.parquet"), field="story", val_fraction=0.2)) == (train, val)


def test_a_document_stays_on_its_side_when_others_come(tmp_path):
    def held_out(count: int) -> set[str]:
        lines = [json.dumps({"text": f"Document {number}"}) for number in range(count)]
        (tmp_path / f"{count}.jsonl").write_text("\n".join(lines))
        return set(TextFiles(path=str(tmp_path / f"{count}.jsonl")).documents("val"))

    assert held_out(100) == {text for text in held_out(200) if int(text.split()[1]) < 100}


def test_globs_and_lists_name_each_file_once(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {number}\n" for number in range(99)))
    train, val = both(TextFiles(path=[f"{tmp_path}/c.txt", f"{tmp_path}/*.txt"]))
    assert [text[0] for text in train] == [text[0] for text in val] == ["c", "a", "b"]


def test_the_fingerprint_follows_the_content_and_nothing_else(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("first line\nsecond\n")
    before = TextFiles(path=str(path)).fingerprint
    assert TextFiles(path=str(path), seq_len=8, packing="pad", cache="elsewhere").fingerprint == before
    assert TextFiles(path=str(path), val_fraction=0.3).fingerprint != before
    path.write_text("first line\nSecond\n")
    assert TextFiles(path=str(path)).fingerprint != before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, "There is no file"),
        ("none-*.txt", None, "No file matches"),
        ("empty.txt", b"", "is empty"),
        ("tiny.txt", b"x", "too small to hold out"),
        ("latin.txt", b"caf\xe9 " * 30, "byte 3 is 0xe9"),
        ("cut.txt", "é".encode()[:1] * 1, "too small|byte 0"),
        ("words.doc", b"text", "not one of .txt"),
        ("a.jsonl", b'{"text": "a"}\n{"text": oops}\n', "line 2 is not JSON"),
        ("b.jsonl", b'{"text": "a"}\n{"story": "b"}\n', "line 2 has no 'text', only story"),
        ("c.jsonl", b'{"text": 5}\n', "line 1: 'text' is not text but 5"),
        ("d.jsonl", b'["text"]\n', "line 1 is not an object"),
        ("e.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "byte 24 is 0xe9"),
        ("f.jsonl", b'{"text": "\\ud800"}\n', "line 1: the text has half"),
        ("g.jsonl", b'{"text": "alone"}\n', "No document of .* falls in the"),
        ("a.parquet", b"not parquet at all", "not a parquet file"),
        (".", None, "is a folder"),
    ],
)
def test_files_that_cannot_be_read_are_said(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        both(TextFiles(path=str(tmp_path / name)))


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"story": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'text', only story, n"):
        both(TextFiles(path=str(tmp_path / "a.parquet")))
    with pytest.raises(UserError, match="'n' is not text but 1"):
        both(TextFiles(path=str(tmp_path / "a.parquet"), field="n"))


def test_a_separator_that_does_not_come_for_long_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("minllm.data.text.PIECE", 64)
    monkeypatch.setattr("minllm.data.text.LONGEST", 500)
    (tmp_path / "one.txt").write_text("first # " + "no marks here" * 99)
    with pytest.raises(UserError, match="has no '#' in .* from byte 7 on"):
        both(TextFiles(path=str(tmp_path / "one.txt"), separator="#"))


def test_a_separator_that_never_comes_is_said(tmp_path):
    (tmp_path / "one.txt").write_text("no marks here")
    with pytest.raises(UserError, match="has no '#' in it"):
        both(TextFiles(path=str(tmp_path / "one.txt"), separator="#"))


@pytest.mark.parametrize("options", [{"val_fraction": 0.0}, {"val_fraction": 1.0}, {"separator": ""}])
def test_options_that_leave_nothing_are_refused(options):
    with pytest.raises(UserError):
        TextFiles(path="a.txt", **options)
