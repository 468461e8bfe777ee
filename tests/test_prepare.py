"""`task=prepare` encodes a corpus, says what is in it, and removes what isn't wanted any more."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from minllm.config.compose import compose, perform
from minllm.data.store import build_lock
from minllm.errors import UserError

WORDS = ["the", "little", "dog", "ran", "to", "a", "big", "red", "house", "and", "said", "hello"]


@pytest.fixture
def go(tmp_path, monkeypatch, capsys):
    """Do the task: `go("remove=others")` gives (what it returns, what it prints)."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(2, 30))) for _ in range(300)]
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")

    def call(*words: str):
        data = ["data=text", "data.path=texts.jsonl", "data.seq_len=64", "tokenizer=bytes"]
        found = perform(compose(["task=prepare", *data, *words]), tmp_path / "run")
        return found, capsys.readouterr().out

    return call


def test_prepare_encodes_once_and_prints_contents(go, monkeypatch):
    first, out = go()
    (folder,) = Path(".cache/stores").glob("[0-9a-f]*")
    assert list(first) == [folder.name] and first[folder.name] > 10_000
    assert "bytes per token" in out and "texts.jsonl" in out
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("c", "p"))}
    assert set(table) == {"concat", "pad", "pack"}
    assert table["concat"][1] == "0.0%" and float(table["pad"][1][:-1]) > float(table["pack"][1][:-1])
    monkeypatch.setattr("minllm.data.store.build_beside", None)
    assert go()[0] == first


def test_prepare_removes_named_stores(go):
    mine = set(go()[0])
    others = set(go("tokenizer=tales_512")[0]) - mine
    assert len(mine) == len(others) == 1
    with pytest.raises(UserError, match=f"no store 'nope'.*{next(iter(mine))}"):
        go("remove=nope")
    left, out = go("remove=others")
    assert set(left) == mine and f"Removed  {next(iter(others))}" in out
    assert not go(f"remove=[{next(iter(mine))}]")[0]


def test_prepare_removes_only_unfinished_stores(go):
    (name,) = go()[0]
    stores = Path(".cache/stores")
    dead, alive = stores / "00000000deadbeef.abc123.tmp", stores / "0000000000a11fe0.abc123.tmp"
    notes = [stores / "notes", stores / "notes.tmp", stores / "deadbeef"]
    for folder in (dead, alive, *notes):
        folder.mkdir()
        (folder / "file").write_text("something")
    building = "import sys\nfrom pathlib import Path\nfrom minllm.data.store import build_lock\n"
    building += "with build_lock(Path(sys.argv[1])):\n    print(flush=True)\n    sys.stdin.read()\n"
    command = [sys.executable, "-c", building, str(alive.resolve()).partition(".abc")[0]]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as other:
        other.stdout.readline()
        assert set(go("remove=others")[0]) == {name}
        assert alive.is_dir() and not dead.is_dir() and all(note.is_dir() for note in notes)
        other.stdin.close()
    assert set(go()[0]) == {name, alive.name}
    with build_lock(alive.with_name("0000000000a11fe0")):
        pass
