"""Data sets of Hugging Face's hub from copies on this machine: folders and files of every kind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest

from minllm.config.compose import compose
from minllm.data import hub as hub_module
from minllm.data.hub import Hub
from minllm.data.tales import Tales
from minllm.data.text import TextFiles
from minllm.errors import UserError
from minllm.schema.building import build
from minllm.schema.checking import validate
from tests.stories import TRAIN, VAL, both, local, write_jsonl, write_parquet

REPOSITORY = Path(__file__).resolve().parents[1]
SETS = ("tinystories", "tinystories_v2", "tinystories_instruct", "fineweb_edu")


def test_a_downloaded_folder_has_its_own_splits(downloaded):
    assert both(local(downloaded)) == (TRAIN, VAL)
    assert not list((Path(os.environ["HF_HOME"])).rglob("*.arrow")), "nothing is copied"


def test_the_first_validation_documents_are_always_the_same(downloaded):
    assert both(local(downloaded, val_documents=4)) == (TRAIN, VAL[:4])


def test_without_a_split_for_validation_a_hash_holds_documents_out(downloaded, tmp_path):
    train, val = both(local(downloaded, val_split=None))
    assert sorted(train + val) == sorted(TRAIN) and 1 < len(val) < 20
    short = both(local(downloaded, val_split=None, val_documents=2))
    assert short == (train, val[:2]), "the others are not trained on"
    alone = write_jsonl(tmp_path / "alone.jsonl", TRAIN[:30])
    assert both(local(alone)) == (
        [text for text in train if text in TRAIN[:30]],
        [t for t in val if t in TRAIN[:30]],
    )


@pytest.mark.parametrize(
    "name", ["a.jsonl", "odd[1]*.jsonl", "a.json", "a.parquet", "odd[1].parquet", "a.txt"]
)
def test_one_file_of_any_kind_will_do(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".parquet":
        write_parquet(path, TRAIN)
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"text": text} for text in TRAIN]))
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(TRAIN))
    else:
        write_jsonl(path, TRAIN)
    train, val = both(local(path))
    assert sorted(train + val) == sorted(TRAIN) and val


def test_the_readme_names_configurations(downloaded, tmp_path):
    configs = "configs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {pattern}\n"
        for name, pattern in (("half", "data/train-00000*"), ("all", "data/train*"))
    )
    (downloaded / "README.md").write_text(f"---\n{configs}---\n")
    train, val = both(local(downloaded, name="half"))
    assert sorted(train + val) == sorted(TRAIN[:40])
    with pytest.raises(UserError, match="no configuration 'third', only half, all. Choose one: data.name=…"):
        both(local(downloaded, name="third"))
    with pytest.raises(UserError, match="several configurations: half, all. Choose one: data.name=…"):
        both(local(downloaded))


def test_a_configuration_whose_files_alone_were_downloaded(tmp_path):
    """`hf download HuggingFaceFW/fineweb-edu --include 'sample/10BT/*'` leaves no README."""
    write_parquet(tmp_path / "edu/sample/10BT/000.parquet", TRAIN, url=["…"] * 60)
    train, val = both(local(tmp_path / "edu", name="sample-10BT", val_split=None))
    assert sorted(train + val) == sorted(TRAIN)


def test_what_save_to_disk_wrote(tmp_path):
    import datasets

    splits = {"train": TRAIN, "validation": VAL}
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
    )
    saved.save_to_disk(tmp_path / "two")
    saved["train"].save_to_disk(tmp_path / "one")
    assert both(local(tmp_path / "two")) == (TRAIN, VAL)
    train, val = both(local(tmp_path / "one"))
    assert sorted(train + val) == sorted(TRAIN)
    assert local(tmp_path / "two").size("train") > sum(map(len, TRAIN))


def test_rows_that_are_lines_are_joined_to_documents(tmp_path):
    """As in TinyStories-Instruct: a row is a line, a blank line a blank row, and a mark ends the document."""
    stories = [f"Words: cat, {number}\nStory:\n\nThe cat sat.\n\nThe end." for number in range(9)]
    for name in ("train", "valid"):
        text = "\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n"
        (tmp_path / f"Instruct-{name}.txt").write_text(text)
    assert both(local(tmp_path, separator="<|endoftext|>")) == (stories, stories)
    assert list(local(tmp_path, separator="<|endoftext|>", val_documents=2).documents("val")) == stories[:2]


def test_a_mark_that_never_comes_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "LONGEST", 20)
    path = write_jsonl(tmp_path / "a.jsonl", TRAIN)
    with pytest.raises(UserError, match="has no '#' in 20 rows. If each row is a document"):
        both(local(path, separator="#"))


def test_only_the_calling_thread_reads_parquet_files(downloaded, monkeypatch):
    """An I/O thread of Arrow that still holds a buffer of a Python file can abort Python at exit."""
    readers = set()

    class Watched(io.FileIO):
        def read(self, size=-1):
            readers.add(threading.get_ident())
            return super().read(size)

    monkeypatch.setattr(fsspec, "open", Watched)
    rows = local(downloaded).documents("train")
    assert [next(rows) for _ in range(50)] == TRAIN[:50], "of both files"
    assert readers == {threading.get_ident()}


def test_sizes_are_about_right(downloaded, tmp_path):
    train, val = (sum(len(text.encode()) for text in texts) for texts in (TRAIN, VAL))
    source = local(downloaded)
    assert train <= source.size("train") < 2 * train + 500 and val <= source.size("val") < 2 * val + 500
    held_out = local(downloaded, val_split=None, val_fraction=0.25)
    assert held_out.size("train") == pytest.approx(0.75 * source.size("train"), abs=1)
    assert local(downloaded, val_documents=2).size("val") is None, "nobody has counted the rows"
    path = write_jsonl(tmp_path / "a.jsonl", TRAIN)
    assert TextFiles(path=str(path), val_fraction=0.25).size("val") == path.stat().st_size // 4
    tales = Tales(train_stories=200)
    told = sum(len(text.encode()) for text in tales.documents("train"))
    assert tales.size("train") == pytest.approx(told, rel=0.05)


# ---- fingerprints ---------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_what_is_read_and_nothing_else(downloaded):
    before = local(downloaded).fingerprint
    assert (
        local(downloaded, seq_len=8, streaming=True, licence="other", cache="elsewhere").fingerprint == before
    )
    assert Hub(repo="other/name", path=str(downloaded)).fingerprint == before
    for option in ({"val_documents": 3}, {"field": "n"}, {"val_split": None}, {"separator": "#"}):
        assert local(downloaded, **option).fingerprint != before
    (downloaded / ".cache/lock").write_text("changed")
    assert local(downloaded).fingerprint == before
    write_parquet(downloaded / "data/validation-00000-of-00001.parquet", VAL[1:])
    assert local(downloaded).fingerprint != before


def test_of_the_hub_it_is_the_name_and_the_revision():
    before = Hub(repo="owner/set").fingerprint
    for option in ({"repo": "owner/other"}, {"revision": "v2"}, {"name": "small"}, {"train_split": "all"}):
        assert Hub(**{"repo": "owner/set", **option}).fingerprint != before


def test_large_files_are_known_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr("minllm.data.text.HASHED", 1000)
    (tmp_path / "large.txt").write_text("x" * 2000)
    small = write_jsonl(tmp_path / "small.jsonl", TRAIN[:1])
    before = local(tmp_path).fingerprint
    os.utime(small, ns=(1, 1))
    assert local(tmp_path).fingerprint == before
    os.utime(tmp_path / "large.txt", ns=(1, 1))
    assert local(tmp_path).fingerprint != before


def test_fingerprints_and_checks_import_nothing_heavy(downloaded):
    program = (
        "from minllm.data.hub import Hub; import sys;"
        "source = Hub(repo='a/b', path=sys.argv[1]); source.check(); source.fingerprint;"
        "print({'datasets', 'huggingface_hub', 'pyarrow', 'torch'} & set(sys.modules) or 'little')"
    )
    command = [sys.executable, "-c", program, str(downloaded)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout == "little\n", done.stderr


# ---- what can be wrong with a copy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"field": "story"}, "no column 'story', only text. Choose one: data.field=…"),
        ({"train_split": "test"}, "no split 'test', only train, validation. Choose one: data.train_split=…"),
        ({"val_split": "dev"}, "no split 'dev', only train, validation. Choose one: data.val_split=…"),
        ({"val_split": None, "val_fraction": 1e-9}, "has no validation documents. Change data.val_fraction"),
    ],
)
def test_what_a_set_does_not_have_is_said(downloaded, options, says):
    with pytest.raises(UserError, match=says):
        both(local(downloaded, **options))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("bad.jsonl", b'{"text": "a"}\n{"text": oops}\n', "can't be read: JSON parse error"),
        ("number.jsonl", b'{"text": 5}\n', "'text' is not text but 5"),
        ("fields.jsonl", b'{"story": "a"}\n', "no column 'text', only story"),
        ("empty.jsonl", b"", "is empty"),
        ("blank.txt", b"\n\n\n", "has no training documents"),
        ("latin.txt", b"caf\xe9\n", "can't be read: 'utf-8' codec can't decode byte 0xe9"),
        ("bad.parquet", b"no parquet", "can't be read: Parquet"),
        ("words.doc", b"words", "only .parquet, .jsonl, .json, .txt files are supported"),
        ("folder/words.doc", b"words", "can't be read: No .*data files"),
    ],
)
def test_a_copy_that_cannot_be_read_is_said(tmp_path, name, content, says):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        both(local(tmp_path / Path(name).parts[0]))


def test_a_mistyped_path_has_a_suggestion(downloaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        Hub(repo="owner/set", path="Tinystoreis").check()
    assert str(caught.value) == (
        f"There is no file or folder data.path=Tinystoreis (looked in {tmp_path}). Did you mean 'TinyStories'?"
    )
    write_jsonl(tmp_path / "stories.jsonl", TRAIN)
    with pytest.raises(UserError, match="Did you mean 'stories.jsonl'?"):
        list(TextFiles(path="storys.jsonl").documents("val"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"repo": "./here"},
            "not the name of a data set on the hub, which has the form owner/name.*data.path=<path>",
        ),
        ({"val_fraction": 0.0}, "leaves the training or the validation set empty"),
        ({"separator": ""}, "data.separator is empty"),
        ({"val_split": "train"}, "is also the training split"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        Hub(**{"repo": "owner/set", **options})


@pytest.mark.parametrize("data", SETS)
def test_the_options_of_conf_are_sources(data):
    cfg = compose([f"data={data}", "data.path=/nowhere", "data.stride=64"])
    validate(cfg)
    source = build(cfg.data)
    assert isinstance(source, Hub) and source.terms in ("CDLA-Sharing-1.0", "ODC-By 1.0")
    assert set(cfg.data) - {"_target_"} == set(Hub.__dataclass_fields__), "all can be overridden"
