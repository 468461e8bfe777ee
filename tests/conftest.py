"""What several files of tests share."""

from __future__ import annotations

import copy
import gc
import itertools
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra.plugins.config_source import ConfigResult, ConfigSource

from minllm.schema.groups import CONF
from tests import postgres
from tests.stories import TRAIN, VAL, write_parquet

# a busy machine may be slow to draw an example or to run it: that is no failure
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")

CACHES = itertools.count()

# a shell's background jobs ignore Ctrl-C, and so would what the tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported, which it would otherwise look through again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="session")
def each_file_is_read_once():
    """Keep what Hydra has found and parsed, a third of the time of a composition; the tests need two thousand."""
    with pytest.MonkeyPatch.context() as patch:
        for source in (FileConfigSource, ImportlibResourcesConfigSource):
            patch.setattr(source, "load_config", parsed_once(source.load_config))
            patch.setattr(source, "is_config", found_once(source.is_config))
            patch.setattr(source, "is_group", found_once(source.is_group))
        yield


def parsed_once(
    parse: Callable[[ConfigSource, str], ConfigResult],
) -> Callable[[ConfigSource, str], ConfigResult]:
    known = found_once(parse)

    def load_config(source: ConfigSource, config_path: str) -> ConfigResult:
        result = known(source, config_path)
        return replace(result, config=copy.deepcopy(result.config), header=dict(result.header))

    return load_config


def found_once(find: Callable[[ConfigSource, str], Any]) -> Callable[[ConfigSource, str], Any]:
    results: dict[tuple[str, ...], Any] = {}

    def once(source: ConfigSource, config_path: str) -> Any:
        if source.scheme() == "file" and source.path != str(CONF):
            return find(source, config_path)  # tests change only files of their own
        key = (source.provider, source.path, config_path)
        if key not in results:
            results[key] = find(source, config_path)
        return results[key]

    return once


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep what is downloaded out of the home, and this machine's variables out of the tests."""
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    for name in ("HF_ENDPOINT", "HF_DATASETS_CACHE", *offline):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / f"hf{next(CACHES)}"))


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
