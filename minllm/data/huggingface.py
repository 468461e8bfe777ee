"""An interface to the library `datasets`: its cache, and reading from it.

The library is imported only in `library`, because that takes a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minllm.data.parquet import ParquetFiles


@dataclass(frozen=True)
class Part:
    """A split: its rows, and if known, its size in bytes of text and its number of rows."""

    rows: Any
    size: int | None = None
    length: int | None = None


def mapped(rows: Any) -> Part:
    """Return a split whose files are memory-mapped."""
    return Part(rows, sum(Path(file["filename"]).stat().st_size for file in rows.cache_files), len(rows))


def streamed(builder: Any) -> dict[str, Part]:
    """Return splits that are read over the network, with their sizes if the set declares them."""
    splits = builder.info.splits or {}
    parts = {}
    for name, rows in streams(builder).items():
        split = splits.get(name)
        parts[name] = Part(rows, split.num_bytes, split.num_examples) if split else Part(rows)
    return parts


def streams(builder: Any) -> dict[str, Any]:
    """Return a set's splits, read from the files in place."""
    if builder.name == "parquet":
        return {name: ParquetFiles(list(files)) for name, files in builder.config.data_files.items()}
    return builder.as_streaming_dataset()


def arrow_files(folder: Path) -> dict[str, Part]:
    """Return the splits of a folder in the cache, without checking the hub for updates."""
    splits = json.loads((folder / "dataset_info.json").read_bytes())["splits"]
    parts = {}
    for name in splits:
        is_of_split = re.compile(rf".+-{re.escape(name)}(-\d+-of-\d+)?\.arrow").fullmatch
        files = sorted(file for file in folder.iterdir() if is_of_split(file.name))
        rows = [library().Dataset.from_file(str(file)) for file in files]
        parts[name] = mapped(library().concatenate_datasets(rows))
    return parts


# ---- the library and its cache --------------------------------------------------------------------------------------


def library() -> Any:
    """Return the module `datasets` with its logging silenced; importing it takes a second."""
    import logging

    import datasets

    for name in ("datasets", "huggingface_hub.repocard"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return datasets


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep `datasets` off the network. It reads the environment variables only when imported."""
    library()
    import datasets.config
    import huggingface_hub.constants

    modules = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before):
            module.HF_HUB_OFFLINE = value


def cache_of_datasets() -> Path:
    """Return the cache folder of `datasets`, from the environment variables that it uses."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = os.environ.get("HF_HOME") or caches / "huggingface"
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets").expanduser()


def cached_folders(repo: str, name: str | None, revision: str) -> list[Path]:
    """Return the folders where `datasets` keeps a set: <owner>___<set>/<configuration>/<version>/<commit>.

    Args:
        name: the configuration; None: any of them.
        revision: the commit, or its beginning; main: any of them.
    """
    folders = []
    for info in cache_of_datasets().glob("*/*/*/*/dataset_info.json"):
        of_set, configuration, _, commit = info.parent.parts[-4:]
        is_asked_for = (
            list(map(letters, of_set.split("___"))) == list(map(letters, repo.split("/")))
            and name in (None, configuration)
            and (revision == "main" or commit.startswith(revision))
        )
        # sets made from individually chosen files have a hash in their name
        if is_asked_for and json.loads(info.read_bytes()).get("config_name") == configuration:
            folders.append(info.parent)
    return folders


def letters(name: str) -> str:
    """Normalise a set's name to compare it with its folder's: TinyStories is kept in tiny_stories."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
