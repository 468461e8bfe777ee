"""Which runs are this user's own, and which are from elsewhere: a mark says so, and not where their folder is."""

# ruff: noqa: F811 (fixtures of another file)
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import run as door
from minllm.config.compose import compose, perform
from minllm.errors import UserError
from minllm.runs.find import read_run
from minllm.runs.folder import RunDir
from minllm.schema.checking import validate
from minllm.schema.foreign_runs import FOREIGN
from minllm.study.report.commands import lines_of
from minllm.tokenizer.bytes import Bytes
from tests.test_validation_kinds import a_run, go, here, other, write  # noqa: F401


def test_a_run_that_was_made_here_names_what_it_likes(
    here: Path, other: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(other))
    words = ["tokenizer=bytes", "data=text", f"data.path={other}/a.txt", f"data.cache={other}/stores"]
    RunDir(here / "run").begin(compose(words), Bytes())
    own = read_run("run")
    assert own.data.path == f"{other}/a.txt" and own.data.cache == f"{other}/stores"
    (here / "run").rename(other / "moved")
    assert read_run(other / "moved") == own
    config = other / "moved" / "config.yaml"
    config.write_text(config.read_text().replace("a.txt", "b.txt"))
    assert read_run(other / "moved").data.path.startswith(FOREIGN)
    RunDir(here / "run").begin(compose(words), Bytes())
    (other / ".cache/minllm/key").unlink()  # another machine, or another user
    assert read_run("run").data.path.startswith(FOREIGN)
    (other / ".cache/minllm").rmdir()
    (other / ".cache/minllm").write_text("")  # no key can be kept
    RunDir(here / "run").begin(compose(words), Bytes())
    assert read_run("run").data.path.startswith(FOREIGN)


@pytest.mark.parametrize("known", ["", "[]", '{"mark": null}', '{"mark": 5}', '{"mark": "é"}', "[" * 99999])
def test_a_mark_that_is_none(here: Path, known: str):
    folder = a_run(here / "run", data={"path": "/etc/passwd"})
    (folder / "environment.json").write_text(known, encoding="utf-8")
    assert read_run(folder).data.path.startswith(FOREIGN)


@pytest.mark.parametrize(
    "data", [{"path": "${tags.0}"}, {"path": "${oc.select:tags.0}"}, {"path": "/${tags.1}"}]
)
def test_a_foreign_configuration_hides_no_place_behind_a_reference(here: Path, data: dict):
    cfg = read_run(
        a_run(here / "run", data={**data, "cache": "${tags.0}"}, tags=["/etc/passwd", "etc/passwd"])
    )
    assert cfg.data.path == f"{FOREIGN}/etc/passwd" and cfg.data.cache == ".cache/stores"


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"data": {"path": "${tags.0}${tags.1}"}, "tags": ["$", "{oc.env:HOME}"]}, "nested interpolations"),
        ({"data": {"path": "${nowhere}"}}, "refers to keys that it doesn't have"),
        ({"data": {"path": "${data.path}"}}, "refers to keys that it doesn't have"),
        ({"data": {"path": "${oc.env:HOME}"}}, "not to the environment"),
        ({"a": "x" * (1 << 20)}, "more than"),
    ],
)
def test_a_foreign_configuration_that_is_refused(here: Path, sections: dict, says: str):
    with pytest.raises(UserError, match=says):
        read_run(a_run(here / "run", **sections))


@pytest.mark.parametrize(
    "more", ["z: " + "{a: " * 700 + "1" + "}" * 700, "z: " + "[" * 900 + "]" * 900, "data: [1]"]
)
def test_a_foreign_configuration_that_is_nested_too_deeply_or_oddly(here: Path, more: str):
    folder = a_run(here / "run")
    lines = (folder / "config.yaml").read_text().splitlines()
    start = lines.index("data:")
    end = next(n for n in range(start + 1, len(lines)) if not lines[n].startswith(" "))
    (folder / "config.yaml").write_text("\n".join([*lines[:start], *lines[end:], more]))
    with pytest.raises(UserError):
        validate(compose(["task=generate", f"run={folder}"]))


@pytest.mark.parametrize("depth", [60, 700])
def test_a_file_that_is_nested_too_deeply(go, depth: int):
    write("experiment/x", "# @package _global_\n# x\nmodel: " + "{a: " * depth + "1" + "}" * depth)
    code, err = go("experiment=x", "task=describe")
    assert code == 2 and "nested too deeply" in err and err.count("\n") == 1


def test_help_prints_no_control_characters_and_waits_for_no_pipe(here: Path, capfd):
    write("experiment/\x1b[31mx", "# @package _global_\n# \x1b]0;owned\x07\n")
    os.mkfifo("evil/experiment/pipe.yaml")
    assert door.main(["--config-dir", "evil", "--help"]) == 0
    out = capfd.readouterr().out
    assert not set("\x1b\x07") & set(out) and "\\x1b]0;owned\\x07" in out


def test_passwords_in_urls_are_not_shown():
    for url in ("postgresql://me:secret@host/x", "http://:secret@host", "https://a:secret%40@h:1/b@c"):
        said = str(UserError(f"[{url}] or '{url}' can't be used: x@y"))
        assert "secret" not in said and "x@y" in said and "://***@h" in said
    assert str(UserError("see https://host/a@b:1, me@x.org")) == "see https://host/a@b:1, me@x.org"


def test_the_commands_of_a_report_give_no_orders_that_a_foreign_run_typed():
    words = ["norm=pre", "+hydra.callbacks.x=y", "++hydra.run.dir=/", "extensions=[os]"]
    run = SimpleNamespace(cfg={"typed": words, "extensions": []})
    assert lines_of(SimpleNamespace(runs={0: run})) == ["python run.py norm=pre seed=0"]
    run.cfg["extensions"] = ["os"]  # which whoever compares has named
    assert lines_of(SimpleNamespace(runs={0: run})) == ["python run.py norm=pre 'extensions=[os]' seed=0"]


def test_stores_are_listed_without_control_characters(here: Path, capsys):
    words = ["task=prepare", "tokenizer=bytes", "data=text", "data.path=a.txt", "data.num_proc=1"]
    Path("a.txt").write_text("some text\n" * 200, encoding="utf-8")
    perform(compose(words), Path("unused"))
    (store,) = (one for one in Path(".cache/stores").iterdir() if one.is_dir())
    other = store.with_name("0123456789abcdef")
    shutil.copytree(store, other)
    known = json.loads((other / "meta.json").read_text())
    known["options"]["path"] = known["tokenizer"] = "\x1b]0;owned\x07"
    (other / "meta.json").write_text(json.dumps(known))
    (other / "gone").symlink_to("nowhere")
    Path("mine").mkdir()
    store.with_name("1123456789abcdef").symlink_to(Path("mine").resolve())
    perform(compose([*words, "remove=0123456789abcdef"]), Path("unused"))
    out = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07" in out and not set("\x1b\x07") & set(out)
    assert "1123456789abcdef" not in out and not other.exists()
