"""Your own files become documents, or are said to be what they are."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from minllm.data.text import TextFiles
from minllm.errors import UserError


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
        ("words.doc", b"text", "only .txt"),
        ("a.jsonl", b'{"text": "a"}\n{"text": oops}\n', "line 2 is not JSON"),
        ("b.jsonl", b'{"text": "a"}\n{"story": "b"}\n', "line 2 has no 'text', only story"),
        ("c.jsonl", b'{"text": 5}\n', "line 1: 'text' is not text but 5"),
        ("d.jsonl", b'["text"]\n', "line 1 is not an object"),
        ("e.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "byte 24 is 0xe9"),
        ("f.jsonl", b'{"text": "\\ud800"}\n', "line 1: the text has an unpaired surrogate"),
        ("g.jsonl", b'{"text": "alone"}\n', "has no (training|validation) documents"),
        ("a.parquet", b"not parquet at all", "can't be read as a parquet file"),
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
    with pytest.raises(UserError, match="has no '#' in .* from byte 7"):
        both(TextFiles(path=str(tmp_path / "one.txt"), separator="#"))


def test_a_separator_that_never_comes_is_said(tmp_path):
    (tmp_path / "one.txt").write_text("no marks here")
    with pytest.raises(UserError, match="doesn't contain '#'"):
        both(TextFiles(path=str(tmp_path / "one.txt"), separator="#"))


@pytest.mark.parametrize("options", [{"val_fraction": 0.0}, {"val_fraction": 1.0}, {"separator": ""}])
def test_options_that_leave_nothing_are_refused(options):
    with pytest.raises(UserError):
        TextFiles(path="a.txt", **options)


def test_a_link_to_nothing_is_said(tmp_path):
    (tmp_path / "link.txt").symlink_to("gone.txt")
    with pytest.raises(UserError, match="a symbolic link to gone.txt, which doesn't exist"):
        both(TextFiles(path=str(tmp_path / "link.txt")))
