"""Restrictions on runs from other sources: their paths, and how a run is known as this user's own."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError
from minllm.schema.foreign import is_outside, leaves

PATH_OPTION = re.compile(r"path|file|folder|dir|cache|root")
DEFAULT_CACHE = ".cache/stores"
FOREIGN = "from elsewhere: "
"""The prefix that marks an external run's paths as unusable."""
KEY_BYTES = 32


def without_foreign_paths(cfg: DictConfig) -> DictConfig:
    """Return a run's configuration in which paths outside the working directory are marked as unusable.

    Only the command line may name files outside the working directory to read or write. Code that is about to open a
    path calls `refuse_foreign`, which raises for a marked one.
    """
    result = cfg.copy()
    for section in ("data", "tokenizer", "objective", "logger"):
        # the tokenizer is read from the copy in the run, and not from the paths in its options
        inner = [] if not isinstance(cfg.get(section), DictConfig) else leaves(cfg[section])
        for name, value in inner:
            option = next((part for part in reversed(name.split(".")) if not part.isdigit()), name)
            if section == "tokenizer" and "." not in name:
                continue
            if isinstance(value, str) and PATH_OPTION.search(option) and is_outside(value):
                place = DEFAULT_CACHE if option == "cache" else f"{FOREIGN}{value}"
                OmegaConf.update(result, f"{section}.{name}", place)
    if isinstance(trunk := cfg.get("branch_from"), str) and is_outside(trunk):
        result.branch_from = f"{FOREIGN}{trunk}"
    return result


def refuse_foreign(place: str, key: str) -> None:
    """Raise UserError if a path was marked by `without_foreign_paths`."""
    if place.startswith(FOREIGN):
        named = place.removeprefix(FOREIGN)
        raise UserError(
            f"The run has {key}={named}, which is outside the working directory, and it wasn't created by this user on"
            f" this machine, or its config.yaml was changed. If you trust it, type {key}={named}"
        )


def mark(config: str) -> str | None:
    """Return a signature that shows that a config.yaml was written by this user on this machine.

    None if no key can be stored, such as without a home folder.
    """
    with contextlib.suppress(OSError, RuntimeError):
        key_file().parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(key_file(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
    return signature(config.encode())


def is_own(run: Path) -> bool:
    """Whether a run was created by this user on this machine and its config.yaml is unchanged."""
    try:
        known = json.loads((run / "environment.json").read_bytes())["mark"]
        expected = signature((run / "config.yaml").read_bytes())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    if expected is None or not isinstance(known, str):
        return False
    return hmac.compare_digest(known.encode(), expected.encode())


def signature(config: bytes) -> str | None:
    try:
        key = key_file().read_bytes()
    except (OSError, RuntimeError):
        return None
    return hmac.new(key, config, hashlib.sha256).hexdigest() if len(key) == KEY_BYTES else None


def key_file() -> Path:
    return Path.home() / ".cache" / "minllm" / "key"
