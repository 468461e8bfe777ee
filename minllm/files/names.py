"""Names of folders, studies and W&B runs: limited in length, and still unique."""

from __future__ import annotations

import hashlib

LONGEST = 100
"""Characters in the name of a folder or of a search (`minllm.schema.options.FolderName`)."""


def short(name: str, limit: int = LONGEST) -> str:
    """Return a name of at most `limit` characters; longer ones get a hash to stay unique."""
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - len(digest) - 1]}-{digest}"
