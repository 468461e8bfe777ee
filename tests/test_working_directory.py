"""Files in the working directory never replace modules, in none of the processes that are started there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minllm.bench import worker
from minllm.data import encoding
from minllm.runs import interpreter
from minllm.sweep import processes
from minllm.tokenizer.bytes import Bytes

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "select",
    "queue",
    "random",
    "torch",
    "minllm",
    "numpy",
    "hydra",
    "socket",
    "json",
    "logging",
    "yaml",
)
PROBE = """
import importlib.util, json, sys
def main():
    names = json.loads(sys.argv[1])
    print(json.dumps({name: importlib.util.find_spec(name).origin for name in names}))
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory full of files that are called like modules, and leave a trace when they are imported."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'TRACE')!r}, 'w').close()\n")
    (folder / "my_idea.py").write_text("")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("door", ["run.py", "sweep.py"])
def test_the_doors(hostile: Path, door: str):
    done = subprocess.run([sys.executable, ROOT / door, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "model/attn" in done.stdout and not (hostile / "TRACE").exists()


@pytest.mark.parametrize("door", ["run.py", "sweep.py"])
def test_the_doors_in_their_own_folder(hostile: Path, door: str):
    """`python run.py` in a clone looks into the clone's folder first."""
    (hostile / door).write_text((ROOT / door).read_text())
    (hostile / "minllm.py").unlink()
    for name in ("minllm", "conf"):
        (hostile / name).symlink_to(ROOT / name)
    done = subprocess.run([sys.executable, door, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "model/attn" in done.stdout and not (hostile / "TRACE").exists()


@pytest.mark.parametrize("door", [(), ("sweep",)])
def test_the_doors_of_an_installed_minllm(hostile: Path, door: tuple[str, ...]):
    """`python -m` looks into the working directory first, where minllm itself isn't."""
    (hostile / "minllm.py").unlink()
    for name in ("typing", "re", "runpy", "pathlib", "copy"):
        (hostile / f"{name}.py").write_text((hostile / "queue.py").read_text())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (["--help"], ["--cfg", "job", "extensions=[my_idea]"]):
        done = subprocess.run(
            [sys.executable, "-m", "minllm", *door, *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout, done.stderr
        assert not (hostile / "TRACE").exists()


def test_processes_that_are_started(hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "probe.py").write_text(PROBE)
    # as in an interactive session, where the working directory is looked in first
    monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if path), str(tmp_path)])
    asked = json.dumps([*NAMES, "my_idea"])
    done = subprocess.run(interpreter.command("probe", asked), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found.pop("my_idea") == str(hostile / "my_idea.py")
    assert not [origin for origin in found.values() if origin.startswith(str(hostile))]
    assert found["minllm"] == str(ROOT / "minllm" / "__init__.py") and not (hostile / "TRACE").exists()


@pytest.mark.parametrize("starts", ["a search", "an encoding"])
def test_processes_that_are_started_run_the_same_minllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: str
):
    """Even if an installed one, or another clone, comes first in the import path."""
    (tmp_path / "other/minllm").mkdir(parents=True)
    (tmp_path / "other/minllm/__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other"), str(tmp_path), *sys.path])
    if starts == "a search":
        command = interpreter.command("probe", json.dumps(["minllm"]))
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == {"minllm": str(ROOT / "minllm" / "__init__.py")}
    else:
        Bytes().save(tmp_path)
        helper = encoding.Helper(Bytes, str(tmp_path))
        assert helper.encode(["a b"]).bytes.tolist() == [3]
        helper.process.kill()
        helper.close()


def test_searches_and_benchmarks_start_their_processes_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    started = []

    class Started(Exception):
        pass

    def popen(words: list[str], **_: object) -> None:
        started.append(words)
        raise Started

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(Started):
        processes.ForkServer(1)
    job = worker.Job.__new__(worker.Job)
    monkeypatch.setattr(worker, "asdict", lambda _: {"a": 1})
    with pytest.raises(Started):
        worker.Worker(job)
    assert started == [
        interpreter.command("minllm.sweep.server"),
        interpreter.command("minllm.bench.worker", '{"a": 1}'),
    ]
