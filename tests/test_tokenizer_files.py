"""A tokenizer's files may begin with a mark, and are refused in a sentence when they're damaged."""

from __future__ import annotations

import codecs
import json

import pytest

from minllm.config.compose import compose, perform
from minllm.errors import UserError
from minllm.tokenizer.huggingface import HuggingFace
from minllm.tokenizer.sentencepiece import SentencePiece
from tests.vocabularies import byte_fallback, byte_level

CONFIG = json.dumps({"eos_token": "<|endoftext|>", "bos_token": {"content": "<|pad|>"}}).encode()


@pytest.fixture
def folder(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_bytes(CONFIG)
    return tmp_path


def test_files_may_begin_with_a_mark(folder):
    before = HuggingFace(name=str(folder))
    for file in folder.iterdir():
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    again = HuggingFace(name=str(folder))
    assert (again.fingerprint, again.bos_id) == (before.fingerprint, before.bos_id)
    again.save(folder / "kept")
    kept = HuggingFace(folder / "kept", name="gone")
    assert kept.fingerprint == before.fingerprint


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "can't be read as JSON"),
        (codecs.BOM_UTF8, "can't be read as JSON"),
        (b"[" * 100_000, "can't be read as JSON"),
        (b"[]", "isn't a JSON object"),
        (CONFIG.decode().encode("utf-16"), "is UTF-16 text"),
        (b'{"a": "caf\xe9"}', "not UTF-8 text"),
        (b"\x1f\x8b\x08" + CONFIG, "compressed by gzip"),
    ],
)
def test_files_that_are_no_json_are_told(folder, name, content, says):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged: .*{says}"):
        HuggingFace(name=str(folder))


@pytest.mark.parametrize("size", ["x", -1, 0, 1.5, True, [], {}, 10**9, 10**30])
def test_a_size_that_cannot_be_is_told(folder, size):
    HuggingFace(name=str(folder)).save(folder / "kept")
    metadata = json.loads((folder / "kept/minllm.json").read_text())
    (folder / "kept/minllm.json").write_text(json.dumps({**metadata, "vocab_size": size}))
    with pytest.raises(UserError, match="vocab_size|too large"):
        HuggingFace(folder / "kept", name="gone")


def test_a_model_that_the_library_would_abort_at_is_refused(tmp_path):
    source = json.loads(byte_fallback().to_str())
    source["model"]["continuing_subword_prefix"] = "##"
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises(UserError, match="is lossy"):
        HuggingFace(name=str(tmp_path))


@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_names_are_refused(folder, monkeypatch, empty):
    """And don't mean the working directory, which has a tokenizer."""
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="tokenizer.name is empty"):
        HuggingFace(name=empty)
    with pytest.raises(UserError, match="tokenizer.folder is empty"):
        SentencePiece(folder=empty)
    (folder / "notes.txt").write_text("so it is and so it was\n" * 90)
    words = ["task=tokenizer", "data=text", "data.path=notes.txt", "tokenizer.sizes=[280]"]
    for key in ("into", "corpus"):
        with pytest.raises(UserError, match=f"tokenizer.{key}"):
            perform(compose([*words, f"tokenizer.{key}='{empty}'"]), folder / "run")
