"""Words of the command line, `key=value`: what they say, how they're typed, and what is short for them.

Nothing here imports Hydra or torch, so that the answer to --help comes at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def is_seed(word: str) -> bool:
    return key_of(word) == "seed"


def written(value: Any) -> str:
    """Return a value of a configuration as it's typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def with_runs_data(words: Sequence[str]) -> list[str]:
    """Return a command line whose `data.path=…` is taken for the data of the run that it goes on with or looks at.

    The default data, which Hydra composes first, may not have that option; the run's own are held to it afterwards.
    """
    if not any(word.startswith(("resume=", "run=")) for word in words):
        return list(words)
    return [f"++{word}" if word.startswith("data.") else word for word in words]


# ---- short names ---------------------------------------------------------------------------------


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return the shortest ending of each name that no other name ends with: `n_heads` for `model.attn.n_heads`."""
    names = list(dict.fromkeys(names))
    ends = Counter(ending for name in names for ending in endings(name))
    return {name: next((end for end in endings(name) if ends[end] == 1), name) for name in names}


def endings(name: str) -> list[str]:
    """Return the endings of a name that begin with a whole word of it, the shortest first."""
    starts = [0, *(point.end() for point in re.finditer(r"[./]", name))]
    return [name[start:] for start in reversed(starts)]


# ---- quotes --------------------------------------------------------------------------------------


def quoted(word: str) -> str:
    """Return a word with quotes where Hydra wants them: in `arms.a=[norm=pre]` or `baseline=norm=pre`."""
    key, _, value = word.partition("=")
    if key.startswith("-") or "=" not in value:
        return word
    return f"{key}={','.join(map(value_quoted, parts_of(value)))}"


def value_quoted(value: str) -> str:
    bare = value.strip()
    if bare.startswith("[") and bare.endswith("]"):
        return f"[{words_quoted(bare[1:-1])}]"
    return in_quotes(bare) if is_word(bare) and len(parts_of(bare, at="=")) > 1 else value


def words_quoted(listed: str) -> str:
    return ",".join(in_quotes(part.strip()) if is_word(part.strip()) else part for part in parts_of(listed))


def is_word(part: str) -> bool:
    return "=" in part and part[0] not in "'\"{["


def in_quotes(part: str) -> str:
    part = re.sub(r"\\+(?='|\Z)", lambda backslashes: 2 * backslashes[0], part)
    return "'" + part.replace("'", "\\'") + "'"


def parts_of(text: str, at: str = ",") -> list[str]:
    """Split a list's text at its own commas, and not at those inside brackets or quotes, or behind a backslash."""
    parts, depth, quote, escaped = [""], 0, "", False
    for char in text:
        if char == at and not depth and not quote and not escaped:
            parts.append("")
            continue
        parts[-1] += char
        if escaped or char == "\\":
            escaped = not escaped
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "[{(") - (char in "]})")
    return parts
