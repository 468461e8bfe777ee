"""Other processes encode without running the caller's program again, and none of them outlives its use."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from minllm.config.tokenizers import load_tokenizer
from minllm.data import encoding
from minllm.errors import UserError
from minllm.tokenizer import Tokenizer
from minllm.tokenizer.bytes import Bytes
from minllm.tokenizer.huggingface import HuggingFace
from tests.commands import ROOT, python
from tests.test_readme import PYTHON, TINY, blocks
from tests.tokenizers import Lossy, Talkative
from tests.vocabularies import AWKWARD, byte_level

TEXTS = [f"{number} {text}" for number in range(20) for text in AWKWARD]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(encoding, "AT_ONCE", 200)
    monkeypatch.setattr(encoding, "ALONE", 1)


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """The processes that encode, as they are started."""
    found = []

    class Noted(encoding.Helper):
        def __init__(self, kind, folder):
            super().__init__(kind, folder)
            found.append(self.process)

    monkeypatch.setattr(encoding, "Helper", Noted)
    return found


def joined(batches) -> list[list[int]]:
    batches = list(batches)
    arrays = [[getattr(batch, name) for batch in batches] for name in ("tokens", "lengths", "bytes")]
    return [np.concatenate(array).tolist() for array in arrays]


UNGUARDED = """
import minllm.data.encoding as encoding

print("the script runs", flush=True)
encoding.AT_ONCE = encoding.ALONE = 1
"""


def test_the_python_example_runs_as_a_script_whose_corpus_is_encoded_by_several_processes(tmp_path):
    words = ", ".join(map(repr, ["train.steps=2", "data.num_proc=2", *TINY]))
    example = blocks("python", PYTHON)[0].replace('"train.steps=200"', words)
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED + example)
    done = python(str(script), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script runs") == 1
    assert len(done.stdout.splitlines()) > 1  # what the example prints
    assert "Another process" not in done.stderr
    assert len(list((tmp_path / ".cache/stores").glob("*/meta.json"))) == 1


def test_several_processes_find_what_one_finds(tmp_path, started):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (Bytes(), load_tokenizer("tales_512"), HuggingFace(name=str(tmp_path))):
        several = joined(encoding.encoded(TEXTS, tokenizer, 3))
        assert several == joined(encoding.encoded(TEXTS, tokenizer, 1))
    assert len(started) == 9 and all(process.poll() is not None for process in started)


def test_a_reader_that_stops_early_leaves_no_process(started):
    batches = encoding.encoded(TEXTS, Bytes(), 2)
    for _ in range(3):
        next(batches)
    assert len(started) == 2 and all(process.poll() is None for process in started)
    batches.close()
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("no room"), OSError("broken")])
def test_trouble_meanwhile_leaves_no_process(started, error):
    batches = encoding.encoded(TEXTS, Bytes(), 2)
    for _ in range(3):
        next(batches)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        batches.throw(error)
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_never_much_of_a_corpus_is_read_ahead():
    read = 0

    def texts():
        nonlocal read
        for number in range(2000):
            read += 1
            yield f"{number} " * 100

    batches = encoding.encoded(texts(), Bytes(), 2)
    for _ in range(2):
        next(batches)
    assert read < 20
    batches.close()


def test_a_tokenizer_that_loses_something_is_refused_by_other_processes_too():
    with pytest.raises(UserError, match="lossy: it doesn.t keep all of '19 "):
        list(encoding.encoded(TEXTS, Lossy(), 2))


def test_what_a_tokenizer_prints_is_no_answer():
    assert joined(encoding.encoded(TEXTS, Talkative(), 2)) == joined(encoding.encoded(TEXTS, Bytes(), 1))


def test_a_tokenizer_that_only_this_program_knows_is_used_here(started):
    class Local(Bytes):
        pass

    class OfMain(Bytes):
        __module__, __qualname__ = "__main__", "OfMain"

    class Elsewhere(Bytes):
        __module__, __qualname__ = "tests.tokenizers", "Talkative"

    main = sys.modules["__main__"]
    main.OfMain = OfMain  # type: ignore[attr-defined]
    try:
        tokenizers: list[Tokenizer] = [Local(), OfMain(), Elsewhere(), Shifted(shift=1)]
        for tokenizer in tokenizers:
            found = joined(encoding.encoded(TEXTS, tokenizer, 2))
            assert found == joined(encoding.encoded(TEXTS, tokenizer, 1))
    finally:
        del main.OfMain  # type: ignore[attr-defined]
    assert not started


class Shifted(Bytes):
    """Its option isn't kept by `save`, so that no other process can make it."""

    def __init__(self, saved=None, *, shift):
        self.shift = shift
        self.fingerprint = f"shifted by {shift}"


def test_what_no_bytes_stand_for_is_refused_by_other_processes_too():
    with pytest.raises(UserError, match="U[+]D800, an unpaired surrogate"):
        list(encoding.encoded([*TEXTS, "\ud800", *TEXTS], Bytes(), 2))


def test_a_process_that_does_not_start_is_said(monkeypatch):
    monkeypatch.setattr(encoding, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(UserError, match="couldn.t be started.*data.num_proc=1"):
        list(encoding.encoded(TEXTS, Bytes(), 2))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(UserError, match="couldn.t be started.*data.num_proc=1"):
        list(encoding.encoded(TEXTS, Bytes(), 2))
