"""A file that isn't UTF-8 text is told by what it is and what to do with it, and never trained on."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import pickle
import shlex
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minllm.data.hub import Hub
from minllm.data.text import TextFiles
from minllm.errors import UserError
from minllm.files.filetypes import other_kind

TEXT = "".join(f"Fell sat big on home {number}, from home green.\n" for number in range(99))
CHINESE = "".join(f"从前有座山，山里有座庙。一个老和尚{number}\n" for number in range(99))
BINARY = b"the quick brown fox" * 9 + bytes(range(256)) * 9
WIDE = ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", TEXT)
    return file.getvalue()


def in_table(texts: list, kind: pyarrow.DataType) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(texts, kind)}), file)
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(99))
    return file.getvalue()


def database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "db") as connection:
        connection.execute("create table texts (text)")
    return (folder / "db").read_bytes()


def read(path: Path, **options) -> list[str]:
    source = TextFiles(path=str(path), **options)
    return [text for split in ("train", "val") for text in source.documents(split)]


KINDS = {
    "gzip": (gzip.compress(TEXT.encode()), "compressed by gzip. .*gunzip -c"),
    "bzip2": (bz2.compress(TEXT.encode()), "compressed by bzip2. .*bzip2 -dc"),
    "xz": (lzma.compress(TEXT.encode()), "compressed by xz. .*xz -dc"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04" + BINARY, "compressed by zstd. .*zstd -dc"),
    "zip": (zipped(), "a zip archive.*unzip"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\n", "a PDF document.*pdftotext"),
    "png": (b"\x89PNG\r\n\x1a\n" + BINARY, "an image"),
    "jpeg": (b"\xff\xd8\xff\xe0" + BINARY, "an image"),
    "parquet": (in_table(["a"], pyarrow.string()), r"a parquet file.*ends with \.parquet"),
    "elf": (b"\x7fELF\x02" + BINARY, "a program"),
    "pickle": (pickle.dumps([TEXT]), "a pickled Python object"),
    "npy": (array(), "a NumPy array"),
    "safetensors": (b"\x40" + bytes(7) + b'{"a":{}}', "a safetensors file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_files_are_named(tmp_path, kind, suffix):
    content, says = KINDS[kind]
    path = tmp_path / f"notes{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read(path)
    with pytest.raises(UserError, match=says):
        TextFiles(path=str(path)).check()  # before anything is built
    with pytest.raises(UserError, match=says):
        Hub(repo="a/b", path=str(path)).check()


def test_more_kinds_of_files_are_known(tmp_path):
    assert other_kind(database(tmp_path))[0] == "an SQLite database"
    assert other_kind(Path(os.path.realpath(sys.executable)).read_bytes()[:4096])[0] == "a program"


def test_a_compressed_file_by_its_own_name_is_named_too(tmp_path):
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    with pytest.raises(UserError, match=r"only \.txt.* gunzip -c .*notes\.txt\.gz > .*notes\.txt$"):
        read(tmp_path / "notes.txt.gz")


@pytest.mark.parametrize("text", [TEXT, CHINESE], ids=["english", "chinese"])
@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("encoding", WIDE)
def test_the_command_for_a_wide_encoding_makes_the_text(tmp_path, encoding, mark, text):
    path = tmp_path / "it's notes.txt"
    path.write_bytes(("\ufeff" * mark + text).encode(encoding))
    said = encoding[:6] if mark else encoding
    with pytest.raises(UserError, match=f"is {said} text. Convert it: iconv -f {said} -t UTF-8") as refusal:
        read(path)
    command = str(refusal.value).partition("Convert it: ")[2]
    if os.path.exists("/usr/bin/iconv"):
        subprocess.run(["sh", "-c", command], check=True)
        made = Path(shlex.split(command)[-1])
        assert "".join(read(made)) == text


@pytest.mark.parametrize("encoding", ["cp932", "gb18030", "latin1", "cp1252", "koi8-r", "big5"])
def test_an_encoding_of_bytes_is_not_guessed(tmp_path, encoding):
    words = {"latin1": "café", "cp1252": "“so”", "koi8-r": "Жили-были"}.get(encoding, "昔山")
    (tmp_path / "notes.txt").write_bytes((f"{words} " * 60).encode(encoding))
    content = (tmp_path / "notes.txt").read_bytes()
    first = next(at for at, byte in enumerate(content) if byte > 127)
    says = f"byte {first} is 0x{content[first]:02x}.*iconv -f <encoding>"
    with pytest.raises(UserError, match=says) as refusal:
        read(tmp_path / "notes.txt")
    assert "latin1" not in str(refusal.value)


def test_the_byte_that_is_not_utf_8_is_told_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("minllm.data.text.PIECE", 64)
    content = TEXT.encode()
    for at in (1000, len(content) - 2):
        (tmp_path / "notes.txt").write_bytes(content[:at] + b"\xe9" + content[at + 1 :])
        with pytest.raises(UserError, match=f"byte {at:,} is 0xe9"):
            read(tmp_path / "notes.txt")
        with pytest.raises(UserError, match=f"byte {at:,} is 0xe9"):
            read(tmp_path / "notes.txt", separator="\n")


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=4))
def test_no_utf_8_text_is_taken_for_another_kind(text):
    # but for those that begin as another kind does, which nobody writes
    assert other_kind(b"A" + text.encode()) is None


@pytest.mark.parametrize(
    "start", ["GGUF is", "PAR1 of", "MZ stands for", "BZh9 is", "PK is", "II* so", "The ftyp", "ID3 is", "7z"]
)
def test_a_text_may_begin_with_a_name(start):
    assert other_kind((start + TEXT).encode()) is None


# ---- NULs ----------------------------------------------------------------------------------------


def test_a_text_with_many_nuls_is_refused(tmp_path):
    """Such as iconv -f latin1 makes of UTF-16."""
    converted = TEXT.encode("utf-16").decode("latin1").encode()
    damaged = TEXT.encode() + bytes(500)
    for content in (converted, damaged, TEXT.encode("utf-16-le").replace(b"F", b"\0")):
        (tmp_path / "notes.txt").write_bytes(content)
        with pytest.raises(UserError, match="NUL|UTF-16"):
            read(tmp_path / "notes.txt")


def test_a_document_with_many_nuls_is_refused_in_other_files(tmp_path):
    texts = [*map(str, range(40)), "f\0e\0l\0l\0"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "a.parquet").write_bytes(in_table(texts, pyarrow.string()))
    with pytest.raises(UserError, match="line 41: 50% of the characters are NUL"):
        read(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="row 41: 50% of the characters are NUL"):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="50% of the characters are NUL"):
        list(Hub(repo="a/b", path=str(tmp_path / "a.parquet")).documents("train"))


def test_a_nul_here_and_there_is_text(tmp_path):
    (tmp_path / "notes.txt").write_text(TEXT[:2000] + "\0" + TEXT[2000:])
    assert "".join(read(tmp_path / "notes.txt")).count("\0") == 1


# ---- the mark that begins a file -----------------------------------------------------------------


def test_a_mark_at_the_beginning_is_dropped_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("minllm.data.text.PIECE", 64)
    path = tmp_path / "notes.txt"
    path.write_bytes(codecs.BOM_UTF8 + "".join(f"\ufeff{line}\n" for line in TEXT.splitlines()).encode())
    assert "".join(read(path)) == "".join(f"\ufeff{line}\n" for line in TEXT.splitlines())
    assert all(text.startswith("\ufeff") for text in read(path, separator="\n") if text)
    lines = [json.dumps({"text": f"\ufeff{number}"}, ensure_ascii=False) for number in range(40)]
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + "\n".join(lines).encode())
    assert sorted(read(tmp_path / "a.jsonl")) == sorted(f"\ufeff{number}" for number in range(40))


# ---- values that are missing or bad --------------------------------------------------------------


def test_null_is_passed_over_and_said(tmp_path, capsys):
    texts = [f"text {number}" if number % 4 else None for number in range(80)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "a.parquet").write_bytes(in_table(texts, pyarrow.string()))
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "a.parquet")
    assert len(read(tmp_path / "a.jsonl")) == 60
    assert capsys.readouterr().err.count("skipped 20 documents whose 'text' is null") == 3


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": {"of": "it"}}', "line 2: 'text' is not text but .*data.field="),
        ('{"text": ["a"]}', "line 2: 'text' is not text"),
        ('{"text": true}', "line 2: 'text' is not text but true"),
        ("null", "line 2 is not an object"),
        ("{}", "line 2 has no 'text'"),
        ('{"text": "cut', "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_line_without_text_is_told(tmp_path, line, says):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "so"}}\n{line}\n')
    with pytest.raises(UserError, match=says):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_a_byte_in_a_parquet_file_that_is_not_utf_8_is_told(tmp_path, kind):
    texts = [f"text {number}".encode() for number in range(2000)]
    texts[1500] = b"caf\xe9 so"
    kind_of_bytes = pyarrow.binary() if kind == pyarrow.string() else pyarrow.large_binary()
    column = pyarrow.array(texts, kind_of_bytes).view(kind)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet", row_group_size=700)
    says = "row 1,501: .*not UTF-8: byte 3 is 0xe9"
    with pytest.raises(UserError, match=says):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=says):
        list(Hub(repo="a/b", path=str(tmp_path / "a.parquet")).documents("train"))


@pytest.mark.parametrize("left", [0.1, 0.5, 0.9, 0.999])
def test_a_parquet_file_that_is_cut_off_is_told(tmp_path, left):
    content = in_table([f"text {number}" for number in range(999)], pyarrow.string())
    (tmp_path / "a.parquet").write_bytes(content[: int(left * len(content))])
    with pytest.raises(UserError, match=r"a\.parquet"):
        read(tmp_path / "a.parquet")


def test_a_damaged_page_of_a_parquet_file_is_told(tmp_path):
    content = bytearray(in_table([f"text {number}" for number in range(999)], pyarrow.string()))
    content[40:900] = bytes(860)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet"):
        read(tmp_path / "a.parquet")


def test_a_parquet_file_of_bytes_is_told(tmp_path):
    (tmp_path / "a.parquet").write_bytes(in_table([b"text"], pyarrow.binary()))
    with pytest.raises(UserError, match="'text' is not text"):
        read(tmp_path / "a.parquet")


# ---- separators ----------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["\n\n", r"\n\n"])
def test_a_separator_may_be_typed_with_backslashes(tmp_path, typed):
    stories = [f"Story {number}.\nIts end." for number in range(60)]
    (tmp_path / "notes.txt").write_text("\n\n".join(stories))
    assert sorted(read(tmp_path / "notes.txt", separator=typed)) == sorted(stories)
    (tmp_path / "notes.txt").write_bytes("\r\n\r\n".join(stories).encode())
    with pytest.raises(UserError, match=r"lines that end with \\r\\n. Type .*separator=\"\\r\\n\\r\\n\""):
        read(tmp_path / "notes.txt", separator=typed)
    assert sorted(read(tmp_path / "notes.txt", separator=r"\r\n\r\n")) == sorted(stories)
    (tmp_path / "notes.txt").write_text(r"\n".join(stories))
    assert sorted(read(tmp_path / "notes.txt", separator=r"\\n")) == sorted(stories)


# ---- what isn't a file, and names ----------------------------------------------------------------


def test_what_is_not_a_file_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.txt").symlink_to(tmp_path / "circle.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "null.txt").symlink_to("/dev/null")
    for name, says in {
        "pipe.txt": "is not a file on disk",
        "null.txt": "is not a file on disk",
        "gone.txt": "gone.txt",
        "circle.txt": "circle.txt",
        "folder.txt": "is a folder",
        "a" * 300 + ".txt": "can't be read: File name too long|There is no file",
        "a\0b.txt": "There is no file",
    }.items():
        with pytest.raises(UserError, match=says):
            read(tmp_path / name)
        if name != "folder.txt":
            with pytest.raises(UserError):
                Hub(repo="a/b", path=str(tmp_path / name)).check()


@pytest.mark.parametrize(
    "name", ["it's.txt", "notes (1).txt", 'a "b".txt', "naïve 从前.txt", "[x].txt", "a*b.txt"]
)
def test_any_name_will_do(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text(TEXT)
    assert "".join(read(tmp_path / name)) == TEXT
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "".join(read(Path("~") / name)) == TEXT


@pytest.mark.parametrize("path", ["", "  ", [""], []])
def test_an_empty_path_is_refused(path):
    with pytest.raises(UserError, match="data.path"):
        TextFiles(path=path).check()


def test_nobodys_home_is_told():
    with pytest.raises(UserError, match="no such home folder"):
        TextFiles(path="~nobody_of_this_name/a.txt").check()
