"""A tiny data set, as files of every kind that copies of the hub's come in."""

from __future__ import annotations

import json
from pathlib import Path

from minllm.data.hub import Hub

TRAIN = [f"Story {number} – once upon a time" for number in range(60)]
VAL = [f"Held-out story {number}" for number in range(9)]


def both(source: Hub) -> tuple[list[str], list[str]]:
    return list(source.documents("train")), list(source.documents("val"))


def local(path: Path, **options) -> Hub:
    return Hub(repo="owner/set", path=str(path), **options)


def write_parquet(path: Path, texts: list[str | None], **columns) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, **columns}), path)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts), encoding="utf-8")
    return path
