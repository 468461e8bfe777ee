"""Text becomes documents, a store of tokens and batches, with nothing lost, doubled or mixed up on the way."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from minllm.data import store as store_module
from minllm.data.batches import Batch, open_data
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
    return Counter({**counts, Bytes.eot: len(LENGTHS)})


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
                assert len(letters_in - {Bytes.eot}) <= 1, "one document in a segment"
    assert shared, "some rows should hold several documents"


def test_a_padded_row_is_one_document(letters):
    batch = letters(packing="pad").train(40, seed=0).batch(0)
    assert batch.segments_BT is None, "what follows a document needs no segment: it is never seen"
    for tokens, targets in zip(batch.tokens_BT, batch.targets_BT, strict=True):
        length = int((targets != -100).sum())
        assert (targets[:length] != -100).all() and (targets[length:] == -100).all()
        assert torch.equal(tokens[1:length], targets[: length - 1]), "one document, from its beginning on"
        assert (tokens[length:] == Bytes.eot).all()


def test_the_stream_needs_no_segments_even_when_the_corpus_is_shorter_than_a_row(letters):
    batch = letters(packing="concat", seq_len=1000).train(2, seed=0).batch(0)
    assert batch.segments_BT is None
    assert batch.tokens_BT.shape == (2, 1000) and (batch.targets_BT != -100).all()


def test_best_fit_fills_rows_and_never_overfills_them():
    lengths = np.random.default_rng(0).integers(1, 257, 5000)
    filled = best_fit(lengths, 256)
    assert sorted(piece for row in filled for piece in row) == list(range(5000))
    assert max(lengths[row].sum() for row in filled) <= 256
    assert len(filled) <= 1.01 * -(-lengths.sum() // 256)


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
            assert len(set(tokens.tolist()) | set(targets.tolist()) - {-100} - {Bytes.eot}) <= 2


def test_validation_windows_of_a_document_follow_each_other(letters):
    rows = [
        row
        for batch in letters().validation(1)
        for row in zip(batch.tokens_BT, batch.targets_BT, strict=True)
    ]
    longest = chr(ord("A") + LENGTHS.index(90)).encode()[0]
    of_longest = [targets[targets != -100].tolist() for _, targets in rows if longest in targets.tolist()]
    assert sorted(map(len, of_longest), reverse=True) == [16] * 5 + [11]
    assert sum(targets.count(longest) for targets in of_longest) == 90


# ---- the store ------------------------------------------------------------------------------------------------------


def test_a_store_holds_the_documents(tmp_path):
    store = open_store(Letters(cache=str(tmp_path)), Bytes())
    documents = store.split("train")
    assert documents.tokens.dtype == np.uint16 and len(documents.starts) == len(LENGTHS) + 1
    for number, start in enumerate(documents.starts[:-1]):
        stop = documents.starts[number + 1]
        assert documents.tokens[start] == Bytes.eot == documents.tokens[stop]
        assert set(documents.tokens[start + 1 : stop].tolist()) == {ord("a") + number}
    assert documents.bytes.tolist() == list(LENGTHS)
    assert store.metadata["floor_bits_per_byte"] == 0.25


def test_a_store_is_built_once_and_serves_every_layout(tmp_path, monkeypatch):
    first = open_store(Letters(cache=str(tmp_path)), Bytes())
    monkeypatch.setattr(store_module, "write_store", None)
    assert open_store(Letters(cache=str(tmp_path), seq_len=99, packing="pack"), Bytes()) == first


def test_a_large_vocabulary_takes_larger_numbers(tmp_path):
    class Large(Bytes):
        vocab_size, eot, fingerprint = 70_000, 69_999, "large"

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
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    assert open_store(Letters(cache=str(tmp_path)), Bytes()).metadata["splits"]["train"]["documents"] == len(
        LENGTHS
    )


def test_two_builds_at_once_both_end_well(tmp_path):
    class Overtaken(Letters):
        def documents(self, split: Split) -> Iterator[str]:
            if split == "val":
                open_store(Letters(cache=self.cache), Bytes())
            return super().documents(split)

    store = open_store(Overtaken(cache=str(tmp_path)), Bytes())
    assert store.split("val").bytes.tolist() == list(LENGTHS)
    assert list(tmp_path.iterdir()) == [store.folder]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(file, array):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "append", full)
    with pytest.raises(UserError, match="No space left on device.*data.cache="):
        open_store(Letters(cache=str(tmp_path)), Bytes())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        open_store(Letters(cache=str(tmp_path / "file" / "stores")), Bytes())


def test_a_source_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text"')
    cache = tmp_path / "stores"
    with pytest.raises(UserError, match="line 2 is not JSON"):
        open_store(TextFiles(path=str(tmp_path / "bad.jsonl"), cache=str(cache)), Bytes())
    assert not list(cache.iterdir())


def test_a_damaged_store_is_said(tmp_path):
    store = open_store(Letters(cache=str(tmp_path)), Bytes())
    (store.folder / "train.tokens").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged. Delete"):
        store.split("train")
    (store.folder / "store.json").write_text("{")
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


def test_a_separator_that_never_comes_is_said(tmp_path):
    (tmp_path / "one.txt").write_text("no marks here")
    with pytest.raises(UserError, match="has no '#' in it"):
        both(TextFiles(path=str(tmp_path / "one.txt"), separator="#"))


@pytest.mark.parametrize("options", [{"val_fraction": 0.0}, {"val_fraction": 1.0}, {"separator": ""}])
def test_options_that_leave_nothing_are_refused(options):
    with pytest.raises(UserError):
        TextFiles(path="a.txt", **options)
