"""`task=tokenizer` trains tokenizers that can be used, and shows how one cuts a text."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from minllm.config.compose import compose, perform
from minllm.config.tokenizers import load_tokenizer
from minllm.errors import UserError
from minllm.schema.checking import options_of
from minllm.tokenizer.bytes import Bytes
from minllm.tokenizer.chars import Chars
from minllm.tokenizer.huggingface import HuggingFace
from minllm.tokenizer.sentencepiece import SentencePiece
from tests.test_tokenizers import ALGORITHMS, pieces
from tests.vocabularies import made_up_texts


@pytest.fixture
def go(tmp_path, monkeypatch, capsys):
    """Do the task in an empty folder, and return what it returns and prints."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple:
        result = perform(compose(["task=tokenizer", *words]), tmp_path / "unused")
        return result, capsys.readouterr().out

    return call


@pytest.fixture
def data(tmp_path) -> list[str]:
    lines = [json.dumps({"text": text}) for text in made_up_texts()]
    (tmp_path / "notes.jsonl").write_text("\n".join(lines))
    return ["data=text", f"data.path={tmp_path / 'notes.jsonl'}"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_task_trains_what_the_tokenizer_reads(go, data, algorithm):
    words = [*data, f"tokenizer.algorithm={algorithm}", "tokenizer.max_documents=50"]
    measured, said = go(*words, "tokenizer.sizes=[330,360]")
    small, large = f"notes-{algorithm}-330", f"notes-{algorithm}-360"
    assert measured[large] > measured[small] > 1
    metadata = json.loads(Path("tokenizers", large, "metadata.json").read_text(encoding="utf-8"))
    assert metadata["held_out_bytes_per_token"] == measured[large]
    assert (metadata["name"], metadata["algorithm"], metadata["vocab_size"]) == (large, algorithm, 360)
    assert (metadata["corpus"]["name"], metadata["corpus"]["terms"]) == ("notes", "not said")
    assert 40 <= metadata["corpus"]["documents"] <= 50
    found = json.dumps(pieces(Path("tokenizers", large, "tokenizer.model").read_bytes()))
    assert metadata["pieces_sha256"] == hashlib.sha256(found.encode()).hexdigest()
    assert f"tokenizer.folder=tokenizers/{large}" in said and f"{measured[small]:.2f}" in said
    ids, said = go(f"tokenizer.folder=tokenizers/{large}", "tokenizer.show=the cat")
    assert load_tokenizer(f"tokenizers/{large}").decode(ids) == "the cat"


def test_a_corpus_has_a_name(go, data, tmp_path):
    (tmp_path / "more.jsonl").write_text(Path("notes.jsonl").read_text(encoding="utf-8"))
    several = [data[0], f"data.path={tmp_path / '*.jsonl'}", "tokenizer.sizes=[330]"]
    with pytest.raises(UserError, match="tokenizer.corpus=<name>"):
        go(*several)
    with pytest.raises(UserError, match="tokenizer.corpus=<name>"):
        go(*several, "tokenizer.corpus=../up")
    go(*several, "tokenizer.corpus=both", "tokenizer.into=elsewhere")
    assert Path("elsewhere/both-bpe-330/metadata.json").is_file() and not Path("tokenizers").exists()


def test_pieces_are_shown_with_bars_where_there_is_no_colour(go):
    ids, said = go("tokenizer=bytes", "tokenizer.show='a é'")
    assert ids == [97, 32, 0xC3, 0xA9]
    assert said.splitlines() == [
        "a │· │<C3>│<A9>",
        "97│32│195 │169 ",
        "4 tokens, 4 bytes, 1.00 bytes per token",
    ]
    _, said = go("tokenizer=bytes", "tokenizer.show='a\n\x1b[0m'")
    assert said.splitlines()[:3] == ["a │⏎ ", "97│10", "<1B>│[ │0 │m  "]
    assert go("tokenizer.show=''")[1] == "0 tokens, 0 bytes\n"


def test_pieces_are_shown_in_colours_on_a_terminal(go, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, said = go("tokenizer=tales_4096", "tokenizer.show='Once upon a time there was'")
    visible = re.sub("\x1b\\[[0-9;]*m", "", said)
    assert "\x1b[30;48;5;153m" in said and "│" not in said and "·time" in visible
    for columns in range(8, 40):
        monkeypatch.setenv("COLUMNS", str(columns))
        said = go("tokenizer=tales_4096", "tokenizer.show='Once upon a time there was'")[1]
        visible = re.sub("\x1b\\[[0-9;]*m", "", said)
        assert all(len(line) <= columns for line in visible.splitlines()[:-1])
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in go("tokenizer.show=so")[1]


@pytest.mark.parametrize(
    "words", [[], ["tokenizer.sizes=[]"], ["tokenizer.sizes=[512]", "tokenizer.show=so"]]
)
def test_the_task_says_what_to_type(go, words):
    with pytest.raises(UserError, match=r"'tokenizer\.sizes=\[.*'tokenizer\.show="):
        go(*words)


def test_the_tasks_options_are_none_of_a_tokenizers():
    """They stand in one section."""
    own = {*compose(["task=tokenizer", "tokenizer=bytes"]).tokenizer} - {"_target_"}
    assert len(own) == 6
    for one in (Bytes, Chars, HuggingFace, SentencePiece):
        assert not own & options_of(one).keys()


def test_a_size_is_the_same_tokenizer_whatever_larger_ones_there_are(go, data):
    go(*data, "tokenizer.sizes=[330,360]")
    go(*data, "tokenizer.sizes=[330]", "tokenizer.into=alone")
    assert (
        load_tokenizer("alone/notes-bpe-330").fingerprint
        == load_tokenizer("tokenizers/notes-bpe-330").fingerprint
    )


def test_a_tokenizer_of_another_text_is_not_replaced(go, data, tmp_path):
    go(*data, "tokenizer.sizes=[330]")
    before = load_tokenizer("tokenizers/notes-bpe-330").fingerprint
    assert go(*data, "tokenizer.sizes=[330,340]")[0], "of the same text it is"
    text = (tmp_path / "notes.jsonl").read_text()
    (tmp_path / "notes.jsonl").write_text(text.replace("cat", "dog"))
    with pytest.raises(
        UserError, match="notes-bpe-330 was trained on different text.*tokenizer.corpus=<name>"
    ):
        go(*data, "tokenizer.sizes=[320,330]")
    assert not Path("tokenizers/notes-bpe-320").exists()
    assert load_tokenizer("tokenizers/notes-bpe-330").fingerprint == before
    Path("tokenizers/notes-bpe-330/metadata.json").write_text("{", encoding="utf-8")
    assert go(*data, "tokenizer.sizes=[330]")[0]


def test_a_folder_that_lacks_a_file_is_said(go, data):
    go(*data, "tokenizer.sizes=[330]")
    Path("tokenizers/notes-bpe-330/tokenizer.model").unlink()
    with pytest.raises(UserError, match="is incomplete: tokenizer.model is missing"):
        load_tokenizer("tokenizers/notes-bpe-330")
