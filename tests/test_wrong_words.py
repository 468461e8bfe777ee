"""Wrong command lines, files of options and arguments: one sentence, exit code 2, and no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import minllm
import run
import sweep
from minllm.config.compose import compose
from minllm.errors import UserError

WRONG = [
    ("--resolve", "--cfg job --resolve"),
    ("--package", "needs a value"),
    ("--package model", "--cfg job --package model"),
    ("-c", "--cfg job"),
    ("--cfg jobb", "job, hydra, all"),
    ("--cfg=", "--cfg job"),
    ("--info nope", "searchpath"),
    ("--info=", "searchpath"),
    ("--info", "--info defaults"),
    ("--config-dir=~no-such-user/x", "can't be read"),
    ("--multirun=seed=1", "takes no value"),
    ("-m=x", "takes no value"),
    ("--run --multirun", "can't be combined"),
    ("--cfg job --info all", "can't be combined"),
    ("-sc", "install=bash"),
    ("--shell-completion x", "install=bash"),
    ("--config-name", "needs a value"),
    ("--config-dir --cfg job", "needs a value"),
    ("--config-dir nowhere", "nowhere can't be read"),
    ("--config-dir nowhere --help", "nowhere can't be read"),
    ("--version=3", "takes no value"),
    ("--", "no flag --"),
    ("help", "--help"),
    ("trace", "task=trace"),
    ("mqa", "model/attn=mqa"),
    ("task", "task=<option>"),
    ("=x", "key=value"),
    ("été=1", "Can't parse"),
    ("seed = 1", "Can't parse"),
    ("optim.lr=intervall(1,2)", "'interval'"),
    ("optim.lr=interval(1)", "missing"),
    ("lr=0.1", "optim.lr=0.1"),
    ("steps=100", "train.steps=100"),
    ("n_heads=4", "model.attn.n_heads=4"),
    ("attn.n_heads=4", "model.attn.n_heads=4"),
    ("temperature=1", "sample.temperature=1"),
    ("seed=99999999999999999999", "64 bits"),
    ("train.steps=99999999999999999999", "64 bits"),
    ("seed=" + "9" * 5000, "whole number"),
    ("resume=~no-such-user/run", "~"),
    ("task=import from=~no-such-user/x", "~"),
    ("\u2013m", "mean -m?"),
    ("\u2014multirun", "mean --multirun?"),
    ("\u201cnorm=post\u201d", "mean norm=post?"),
    ("model/attn=\u2018mqa\u2019", "'mqa'"),
    ("model/attn=MQA", "'mqa'"),
    ("--model/attn=mqa", "mean model/attn=mqa?"),
    ("/model/attn=mqa", "mean model/attn=mqa?"),
    (" norm=post", "mean norm=post?"),
    ("norm = post", "mean norm=post?"),
    ("norm:post", "mean norm=post?"),
    ("model\\attn=mqa", "mean model/attn=mqa?"),
    ("model/attn=mqa,", "Type model/attn=mqa."),
    ("model/attn=mqa,norm=post", "separate overrides with spaces"),
    ("train.steps=10,000", "type train.steps=10000"),
    ("model.layout=[attn mlp", "'model.layout=[attn mlp]'"),
    ("model/attn=mqa.yaml", "Type model/attn=mqa\n"),
    ("norm=[post]", "type norm=post.\n"),
    ("norm=[post,pre]", "-m norm=post,pre runs each"),
    ("+norm=post", "norm=<option>"),
    ("++norm=post", "norm=<option>"),
    ("data.path=notes.txt", "data=text"),
    ("optim.momentum=0.9", "optim=muon and optim=sgd have it"),
    ("task=evaluate run=latest objective.chain_rule=true", "type +objective.chain_rule=true\n"),
    ("model/attn@model.encoder.attn=mla", "type +model/attn@model.encoder.attn=mla\n"),
    ("objective@objective.of.next=causal", "type +objective@objective.of.next=causal\n"),
    ("extensions=[no_such_package]", "there is no package 'no_such_package'"),
    ("extensions=[my_idea/]", "package names"),
    ("extensions=[my-idea]", "package names"),
    ("tags=[a,???]", "tags[1] has no value"),
    ("tags=[${HOME}]", "tags[0]=${HOME} can't be resolved"),
    ("model.layout=[???]", "model.layout[0] has no value"),
    ("extensions=[${nope}]", "extensions[0]=${nope} can't be resolved"),
]


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, capfd, tmp_path: Path) -> Callable:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def call(*words: str, door=run) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        code = door.main(words)
        return code, capfd.readouterr().err

    return call


@pytest.mark.parametrize(("words", "says"), WRONG, ids=[words[:30] for words, _ in WRONG])
def test_one_sentence_and_exit_code_2(go: Callable, words: str, says: str):
    code, err = go(*(words.split(" ") if words.startswith(("-", "task=")) else [words]))
    assert code == 2 and err.count("\n") == 1 and says in err and len(err) < 700, err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "word", ["../../x", "/tmp/x", "..", "a/b", "-x", ".x", "x" * 300, "a\x00b", "~/x", "*"]
)
def test_a_search_stays_below_outputs(go: Callable, word: str):
    code, err = go(f"sweep.name={word}", "search=none", "seed=0,1", door=sweep)
    assert code == 2 and err.count("\n") == 1 and "sweep.name" in err
    assert not any(Path("outputs").rglob("trial-*")) and not Path("../../x").exists()


WRONG_FILES = {
    "open": b"model: {dim: 3\n",
    "tab": b"model:\n\tdim: 3\n",
    "twice": b"seed: 1\nseed: 2\n",
    "list": b"- a\n",
    "two documents": b"seed: 1\n---\nseed: 2\n",
    "recursive": b"self: &s\n  a: *s\n",
    "code": b"model: !!python/object/apply:os.system [echo]\n",
    "key": b"? [a, b]\n: 1\n",
    "alias": b"seed: *a\n",
    "binary": b"\xff\xfe\x00",
    "a number": b"3\n",
    "a list": b"- seed: 3\n",
    "tabs": b"model:\n\tdim: 32\n",
    "bomb": b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + b"".join(b"%c: &%c [%s]\n" % (i, i, b",".join([b"*%c" % (i - 1)] * 10)) for i in range(98, 104)),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_of_options_that_is_no_yaml(tmp_path: Path, name: str):
    file = tmp_path / "experiment" / "x.yaml"
    file.parent.mkdir()
    file.write_bytes(b"# @package _global_\n# x\n" + WRONG_FILES[name])
    with pytest.raises(UserError) as refusal:
        compose(["experiment=x"], config_dir=tmp_path)
    assert "\n" not in str(refusal.value) and "x.yaml" in str(refusal.value)


@pytest.mark.parametrize("words", [("--config-dir=~/mine",), ("--config-dir", "~/mine"), ("-cd", "~/mine")])
def test_a_folder_of_options_at_home(go: Callable, monkeypatch, tmp_path: Path, words: tuple[str, ...]):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/wide.yaml").write_text("# @package _global_\nmodel:\n  dim: -1\n")
    code, err = go(*words, "experiment=wide")
    assert code == 2 and "model.dim must be" in err


def test_a_working_directory_that_is_gone(go: Callable, tmp_path: Path):
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        code, err = go("--help")
        assert code == 2 and "working directory" in err
    finally:
        os.chdir(tmp_path)


def test_a_closed_stdout_is_no_error(go: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert go("--cfg", "job")[0] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: minllm.compose("model/attn=mqa"),
        lambda: minllm.compose([1]),
        lambda: minllm.compose({"seed": 1}),
        lambda: minllm.train(["model/attn=mqa"]),
        lambda: minllm.build_model("mqa"),
        lambda: minllm.trace("mqa"),
        lambda: minllm.load(5),
        lambda: minllm.load(""),
        lambda: minllm.generate(None, None, "Once"),
        lambda: minllm.compare("nowhere"),
    ],
)
def test_a_wrong_argument_in_python(call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_a_string_for_compose_is_told_to_be_a_list():
    with pytest.raises(UserError, match=r"compose\(\['model/attn=mqa'\]\)"):
        minllm.compose("model/attn=mqa")
