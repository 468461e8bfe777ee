"""A run goes on with data that stand elsewhere by now, if they are the same documents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from minllm.config.compose import compose, perform
from minllm.errors import UserError

TINY = [
    "model.dim=16",
    "model.n_layers=1",
    "data=text",
    "data.path=here/notes.jsonl",
    "data.seq_len=32",
    "data.num_proc=1",
    "train.batch_size=2",
    "train.steps=2",
    "train.check=false",
    "sample.max_new_tokens=2",
]


@pytest.fixture(scope="module", params=["bytes", "chars"])
def moved(request, tmp_path_factory) -> Path:
    """A folder with a run whose data have moved."""
    folder = tmp_path_factory.mktemp("moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("here").mkdir()
        texts = [f"Story {number} of a cat and its hat." for number in range(60)]
        Path("here/notes.jsonl").write_text(
            "\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8"
        )
        perform(compose([*TINY, f"tokenizer={request.param}"]), folder / "run")
    Path(folder, "here").rename(folder / "there, it's")
    shutil.rmtree(folder / ".cache")
    return folder


@pytest.fixture
def run(moved, tmp_path, monkeypatch) -> Path:
    """A run whose data have moved, which may be changed."""
    shutil.copytree(moved, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def go(*words: str):
    cfg = compose(list(words))
    return perform(cfg, Path("unused"))


MOVED = ['data.path="there, it\'s/notes.jsonl"', "data.cache=stores", "data.num_proc=2"]


def test_the_same_documents_elsewhere_go_on(run):
    with pytest.raises(UserError, match="There is no file"):
        go(f"resume={run}", "train.steps=4")
    assert go(f"resume={run}", "train.steps=4", *MOVED)["steps"] == 4
    assert go(f"resume={run}", "train.steps=5")["steps"] == 5, "where they are is remembered"
    assert list(Path("stores").glob("*/meta.json")) and not Path(".cache").exists()


@pytest.mark.parametrize("change", ["a word", "order", "one less"])
def test_other_documents_are_refused_and_nothing_is_changed(run, change):
    path = Path("there, it's/notes.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = {
        "a word": [lines[0].replace("cat", "dog"), *lines[1:]],
        "order": lines[::-1],
        "one less": lines[:-1],
    }[change]
    path.write_text("\n".join(changed), encoding="utf-8")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="documents have changed|read tokens of"):
        go(f"resume={run}", "train.steps=4", *MOVED)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_what_is_learnt_from_the_documents_cannot_change(run):
    for word in ("data.val_fraction=0.3", "data.seq_len=64", "data.field=story", "data.packing=pad"):
        with pytest.raises(UserError, match="resume= continues the same run"):
            go(f"resume={run}", "train.steps=4", *MOVED, word)


def test_a_run_is_measured_on_data_elsewhere(run):
    summary = json.loads((run / "summary.json").read_text())
    figures = go("task=evaluate", f"run={run}", *MOVED)
    assert figures["val_bpb"] == pytest.approx(summary["val_bpb"], abs=1e-6)
    Path("other.txt").write_text("Quite another text, of dogs.\n" * 40, encoding="utf-8")
    assert go("task=evaluate", f"run={run}", "data.path=other.txt")["val_bpb"] > 0
