"""A store of tokens is whole or not there, whatever happens to the processes that build it."""

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

from minllm.data import store as store_module
from minllm.data.batches import open_data
from minllm.data.encoding import encoded
from minllm.data.source import SPLITS, Source, Split
from minllm.data.store import open_store
from minllm.data.text import TextFiles
from minllm.errors import UserError
from minllm.tasks.prepare import contents, describe, stores_in
from minllm.tokenizer.bytes import Bytes
from tests.letters import LENGTHS, Letters, expected, tally

REPOSITORY = Path(__file__).resolve().parents[1]


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


def test_killed_build_leaves_no_store_and_blocks_nobody(tmp_path):
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
from tests.letters import Letters
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
    printed = [process.communicate(timeout=1800) for process in both]
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
        return [
            child for child in children if child.exists() and b"minllm.data.encoding" in child.read_bytes()
        ]

    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left()


def test_killed_encoding_process_is_reported(monkeypatch):
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

    with pytest.raises(UserError, match="lossy: it doesn.t keep all of 'k"):
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
    with pytest.raises(UserError, match="less than one document"):
        open_store(Letters(cache=str(tmp_path), max_tokens=3), Bytes())


def test_full_disk_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    def full(file, array):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "append", full)
    with pytest.raises(UserError, match="No space left on device.*data.cache="):
        open_store(Letters(cache=str(tmp_path)), Bytes())
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_invalid_cache_folder_is_reported(tmp_path):
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

    with pytest.raises(UserError, match="changed while it was being encoded"):
        open_store(Changing(path=str(path), cache=str(tmp_path / "stores")), Bytes())
    assert not [folder for folder in (tmp_path / "stores").iterdir() if folder.is_dir()]


def test_empty_source_is_reported(tmp_path):
    class Empty(Letters):
        def documents(self, split: Split) -> Iterator[str]:
            return iter(())

    with pytest.raises(UserError, match="no training documents"):
        open_store(Empty(cache=str(tmp_path)), Bytes())


def test_damaged_store_is_reported(tmp_path):
    store = open_store(Letters(cache=str(tmp_path)), Bytes())
    (store.folder / "train.tokens").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged. Delete"):
        store.split("train")
    for content in ("{", "{}", "[]"):
        (store.folder / "meta.json").write_text(content)
        with pytest.raises(UserError, match="damaged. Delete"):
            open_store(Letters(cache=str(tmp_path)), Bytes())


NO_TEXT = [None, 0, 1.5, True, [], {}]
NO_COUNT = [None, "x", -1, 0, 1.5, 10**30, True, [], {}]
NO_SECTION = [None, "x", 0, True, ["train"]]
WRONG = {
    "format": [None, "4", 3, 5, [4]],
    "source": NO_TEXT,
    "options": NO_SECTION,
    "tokenizer": NO_TEXT,
    "vocab_size": NO_COUNT,
    "dtype": [*NO_TEXT, "x", "int64", "object"],
    "shared_ends": [None, "true", 0, []],
    "splits": [*NO_SECTION, {}],
    "splits.train": [*NO_SECTION, {}],
    "splits.val.documents": NO_COUNT,
    "splits.train.tokens": NO_COUNT,
    "splits.train.bytes": NO_COUNT,
    "splits.train.sha256": NO_TEXT,
    "validation_text": NO_TEXT,
    "floor_bits_per_byte": ["x", -1, float("nan"), float("inf"), [], {}],
}


@pytest.mark.parametrize("key", WRONG)
def test_metadata_of_wrong_types_is_a_damaged_store(tmp_path, key):
    """Opened, or listed by task=prepare."""
    folder = open_store(Letters(cache=str(tmp_path)), Bytes()).folder
    whole = (folder / "meta.json").read_text()
    *above, last = key.split(".")
    for value in WRONG[key]:
        metadata = json.loads(whole)
        inner = metadata
        for name in above:
            inner = inner[name]
        inner[last] = value
        (folder / "meta.json").write_text(json.dumps(metadata))
        with pytest.raises(UserError, match="damaged. Delete"):
            open_store(Letters(cache=str(tmp_path)), Bytes())
        assert "damaged" in str(describe(folder))


@pytest.mark.parametrize("content", ["[" * 100_000, "\0", '{"format": 4}', "4", '"x"', "NaN"])
def test_metadata_that_is_none_is_a_damaged_store(tmp_path, content):
    folder = open_store(Letters(cache=str(tmp_path)), Bytes()).folder
    (folder / "meta.json").write_text(content)
    with pytest.raises(UserError, match="damaged. Delete"):
        open_store(Letters(cache=str(tmp_path)), Bytes())
    (folder / "meta.json").unlink()
    os.mkfifo(folder / "meta.json")
    with pytest.raises(UserError, match="damaged. Delete"):
        open_store(Letters(cache=str(tmp_path)), Bytes())


ARRAYS = [f"{split}.{what}" for split in ("train", "val") for what in ("tokens", "starts", "checks")]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", ["cut", "longer", "gone", "zeros", "changed", "folder"])
def test_damaged_arrays_are_reported(tmp_path, name, damage):
    store = open_store(Letters(cache=str(tmp_path)), Bytes())
    path = store.folder / name
    content = path.read_bytes()
    if damage in ("gone", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    else:
        changed = content[:2] + bytes([content[2] ^ 1]) + content[3:]
        path.write_bytes(
            {
                "cut": content[:-4],
                "longer": content + b"8 longer",
                "zeros": bytes(len(content)),
                "changed": changed,
            }[damage]
        )
    with pytest.raises(UserError, match="damaged. Delete"):
        store.split(name.partition(".")[0])


@pytest.mark.parametrize("cache", ["", " "])
def test_an_empty_cache_is_refused(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data.cache is empty"):
        open_data(Letters(cache=cache), Bytes())
    with pytest.raises(UserError, match="data.cache is empty"):
        stores_in(cache)
    assert not list(tmp_path.iterdir())


def test_a_cache_may_be_below_home_and_have_any_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = open_store(Letters(cache='~/it\'s my "cache"'), Bytes()).folder
    assert folder.parent == tmp_path / 'it\'s my "cache"'
    assert [store.folder for store in stores_in('~/it\'s my "cache"')] == [folder]


def test_a_large_store_is_checked_where_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("minllm.data.store.CHECKED", 0)
    monkeypatch.setattr("minllm.data.blocks.BLOCK", 64)
    monkeypatch.setattr("minllm.data.store.BLOCK", 64)
    source = Letters(cache=str(tmp_path), seq_len=16)
    store = open_store(source, Bytes())
    batches = open_data(source, Bytes()).train(batch_size=1, seed=0)
    whole = [batches.batch(step).tokens_BT for step in range(batches.rows_per_epoch)]
    tokens = store.folder / "train.tokens"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])

    batches, found = open_data(source, Bytes()).train(batch_size=1, seed=0), []
    for step in range(batches.rows_per_epoch):
        try:
            found.append((batches.batch(step).tokens_BT == whole[step]).all().item())
        except UserError as error:
            assert "damaged. Delete" in str(error)
    assert all(found) and 0 < len(found) < len(whole)  # nothing wrong is ever read, and the rest can be
    with pytest.raises(UserError, match="damaged. Delete"):
        list(contents(store))  # task=prepare looks at all of it


def test_a_store_of_before_is_read(tmp_path):
    folder = open_store(Letters(cache=str(tmp_path)), Bytes()).folder
    metadata = json.loads((folder / "meta.json").read_text())
    del metadata["checks"]
    (folder / "meta.json").write_text(json.dumps(metadata))
    for split in SPLITS:
        (folder / f"{split}.checks").unlink()
        documents = open_store(Letters(cache=str(tmp_path)), Bytes()).split(split)
        documents.check(0, len(documents.tokens))
