"""What several files of tests share."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import hypothesis
import pytest

from tests import postgres
from tests.commands import warm_process
from tests.composing import compose_faster
from tests.stories import TRAIN, VAL, write_parquet

# a busy machine may be slow to draw an example or to run it: that is no failure
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")

# the processes that otherwise compile beside this one would have to import torch first
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

CACHES = itertools.count()

# imports and tests make hundreds of thousands of objects, hardly any of which is garbage in cycles
gc.set_threshold(50_000, 20, 50)

compose_faster()

# no test cuts the power, and what a killed process wrote stays: a disk needn't be waited for
os.fsync = lambda file: None

# a shell's background jobs ignore Ctrl-C, and so would what the tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Before several workers are started, start the process that the commands of all of them are forked from."""
    option = config.option
    runs_commands = not option.collectonly and option.markexpr != "gpu"
    if getattr(option, "numprocesses", None) and runs_commands and not hasattr(config, "workerinput"):
        warm_process()


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported, which it would otherwise look through again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep what is downloaded out of the home, and this machine's variables out of the tests."""
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    for name in ("HF_ENDPOINT", "HF_DATASETS_CACHE", *offline):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / f"hf{next(CACHES)}"))


@pytest.fixture(autouse=True)
def own_packages(tmp_path_factory) -> Iterator[None]:
    """Forget the packages that a test has imported from its folders: others have packages of the same names."""
    latest = next(reversed(sys.modules))
    yield
    folder = f"{tmp_path_factory.getbasetemp()}{os.sep}"
    # the latest first, because thousands are older
    imported = [*itertools.takewhile(lambda name: name != latest, reversed(sys.modules))]
    for name in imported:
        if is_below(folder, sys.modules[name]):
            del sys.modules[name]


def is_below(folder: str, module: object) -> bool:
    # through __dict__: a lazy module would import an attribute that it is asked for
    known = getattr(module, "__dict__", {})
    return any(str(place).startswith(folder) for place in (known.get("__file__"), *known.get("__path__", ())))


@pytest.fixture(scope="module")
def each_composed_once() -> Iterator[None]:
    """In the tests of a file, compose the runs of an arm once."""
    from tests.instant import composed_once

    with composed_once():
        yield


@pytest.fixture
def downloaded(tmp_path) -> Path:
    """A folder as `hf download` leaves TinyStories."""
    folder = tmp_path / "TinyStories"
    write_parquet(folder / "data/train-00000-of-00002.parquet", [*TRAIN[:40], "", None])
    write_parquet(folder / "data/train-00001-of-00002.parquet", TRAIN[40:])
    write_parquet(folder / "data/validation-00000-of-00001.parquet", VAL)
    (folder / "README.md").write_text("---\nlicense: cdla-sharing-1.0\n---\nStories.\n")
    (folder / ".cache").mkdir()
    (folder / ".cache/lock").write_text("hidden")
    return folder


@pytest.fixture(scope="session")
def new_database() -> Iterator[Callable[[], str]]:
    """Make an empty database with each call, on a PostgreSQL server for the tests alone, and return its URL."""
    pytest.importorskip("psycopg", reason="psycopg isn't installed")
    with postgres.server() as url:
        yield partial(postgres.new_database, url)
