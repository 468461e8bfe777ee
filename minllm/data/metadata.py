"""The metadata of a store, meta.json: its format, and whether it's complete."""

from __future__ import annotations

import math
from typing import Any

from minllm.data.source import SPLITS

FORMAT = 4  # part of the folder name; increase it when the format of the files changes


def is_metadata(known: Any) -> bool:
    """Whether a store's metadata has every value that is read from it."""
    if not isinstance(known, dict) or known.get("format") != FORMAT:
        return False
    splits, floor = known.get("splits"), known.get("floor_bits_per_byte")
    return (
        all(isinstance(known.get(name), str) for name in ("source", "tokenizer", "validation_text"))
        and isinstance(known.get("options"), dict)
        and is_count(known.get("vocab_size"))
        and known.get("dtype") in ("uint16", "uint32")
        and isinstance(known.get("shared_ends"), bool)
        and (floor is None or (isinstance(floor, int | float) and 0 <= floor < math.inf))
        and all(is_share(known.get(name)) for name in ("chance", "ceiling"))
        and isinstance(splits, dict)
        and all(is_split(splits.get(split)) for split in SPLITS)
        and isinstance(known.get("checks", {}), dict)
    )


def is_split(known: Any) -> bool:
    if not isinstance(known, dict) or not isinstance(known.get("sha256"), str):
        return False
    counts = all(is_count(known.get(name)) for name in ("documents", "tokens", "bytes"))
    return counts and all(type(known.get(name, 0)) is int for name in ("given", "answers"))


def is_share(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 53
