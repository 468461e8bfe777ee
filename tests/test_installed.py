"""minllm as pip installs it: a wheel that holds conf/ and tokenizers/, used from a folder elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from minllm.schema.groups import HOME

WANTED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "run.py", "sweep.py")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what makes the package, since building leaves files beside it."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("build") / "minllm"
    for name in ("minllm", "conf", "tokenizers"):
        shutil.copytree(HOME / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in WANTED:
        shutil.copy2(HOME / name, folder)
    return folder


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel is unpacked into."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(built("build_wheel", source)) as wheel:
        wheel.extractall(folder)
    return folder


def built(how: str, source: Path) -> Path:
    """Return the wheel that setuptools builds of a source folder, without pip and without network."""
    script = f"from setuptools import build_meta; print(build_meta.{how}('dist'))"
    done = python("-c", script, cwd=source)
    assert done.returncode == 0, done.stderr
    return source / "dist" / done.stdout.splitlines()[-1]


def python(*words: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )


def test_an_installed_minllm_works_anywhere(installed: Path, tmp_path: Path):
    script = (
        "import minllm\n"
        "cfg = minllm.compose(['model/attn=mqa'])\n"
        "print(minllm.__file__, cfg.choices['model/attn'], len(minllm.load_tokenizer('tales_512').encode('A')))\n"
    )
    done = python("-c", script, cwd=tmp_path, path=installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed)) and " mqa " in done.stdout


@pytest.mark.parametrize(
    ("words", "shows"),
    [
        (["model/attn=mqa", "task=describe", "tokenizer=tales_512"], "mqa"),
        (["sweep", "--cfg", "job"], "search"),
    ],
    ids=" ".join,
)
def test_both_doors_open_from_the_package(installed: Path, tmp_path: Path, words: list[str], shows: str):
    done = python("-m", "minllm", *words, cwd=tmp_path, path=installed)
    assert done.returncode == 0 and shows in done.stdout, done.stderr


def test_a_clones_own_name_does_not_hide_the_editable_install(source: Path, tmp_path: Path):
    """From the folder that holds the clone, whose name is minllm too and which is no package."""
    with zipfile.ZipFile(built("build_editable", source)) as wheel:
        (paths,) = [name for name in wheel.namelist() if name.endswith(".pth")]
        added = wheel.read(paths).decode().strip()
    assert Path(added).resolve() == source.resolve(), "a finder of setuptools' would come after the folder"
    done = python("-c", "import minllm; print(minllm.compose)", cwd=source.parent, path=Path(added))
    assert done.returncode == 0 and "function compose" in done.stdout, done.stderr
