"""What a script types for a variable that isn't set: an empty value is refused, and starts nothing anew."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

import run
import sweep
from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.runs.find import remove_if_empty
from minllm.schema.checking import validate

EMPTY = [
    "resume=",
    "init_from=",
    "resume='  '",
    "resume=[]",
    "resume=[a]",
    "resume=5",
    "resume=inf",
    "resume=${nowhere}",
    "init_from=-0.5",
    "init_from={a:1}",
    "data.cache=''",
    "logger=wandb logger.project=",
    "data=text data.path=",
    "data=text data.path=['']",
    "data=text data.path=[a.txt,'']",
    "task=generate run=",
    "task=evaluate run=[]",
    "task=import from=",
    "task=import from=[]",
    "task=compare runs=",
    "task=compare runs=['']",
    "task=compare tag=",
    "task=compare baseline=",
    "task=compare choice=['']",
    "task=tokenizer tokenizer.into=",
    "task=prepare remove=",
    "task=describe against=",
    "tokenizer.folder=",
]


@pytest.mark.parametrize("words", EMPTY)
def test_an_empty_value_is_refused(words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    typed = words.replace("'  '", "'__'").split()
    with pytest.raises(UserError) as refusal:
        validate(compose([word.replace("__", "  ") for word in typed]))
    assert "\n" not in str(refusal.value) and typed[-1].partition("=")[0] in str(refusal.value)
    if typed[-1].endswith("="):
        assert "variable isn't set" in str(refusal.value)


def test_null_is_no_empty_value():
    assert compose(["resume=null", "init_from=null"]).resume is None


@pytest.mark.parametrize(
    "words",
    [
        "hydra.run.dir=",
        "hydra.run.dir=''",
        "hydra.sweep.dir=",
        "hydra.sweep.subdir= ",
        "--config-dir=",
        "--config-dir ",
    ],
)
@pytest.mark.parametrize("door", [run, sweep], ids=["run", "sweep"])
def test_hydras_folders_too(words: str, door, monkeypatch, capsys, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    typed = words.split(" ")
    monkeypatch.setattr(sys, "argv", [inspect.getfile(door), *typed])
    assert door.main(typed) == 2
    said = capsys.readouterr()
    assert "variable isn't set" in said.err and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize("word", ["sweep.name=", "sweep.storage=", "memory.limit="])
def test_a_searchs_names_too(word: str):
    with pytest.raises(UserError, match="variable isn't set"):
        check_search(word)


def check_search(word: str) -> None:
    from minllm.schema.checking import check_value, options_of
    from minllm.sweep.settings import Memory, SweepSettings

    section, _, key = word.rstrip("=").partition(".")
    option = options_of({"sweep": SweepSettings, "memory": Memory}[section])[key]
    check_value("", option.annotation, f"{section}.{key}", set())


def test_the_working_directory_is_never_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    remove_if_empty(Path("."))
    assert Path.cwd().is_dir()
