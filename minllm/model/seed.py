"""Derives independent random streams, identified by names, from one seed."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, name: str) -> torch.Generator:
    """Return a generator that depends on the run's seed and on `name`, such as a parameter's path."""
    return torch.Generator().manual_seed(number(seed, name))


def number(seed: int, name: str) -> int:
    """Return a 63-bit seed for torch."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
