"""Commands that start a minllm module in a new Python, with this process's import path."""

from __future__ import annotations

import os
import sys

START = "import sys; sys.path[:] = sys.argv[2:]; del sys.argv[2:]; from {} import main; main()"


def command(module: str, word: str = "") -> list[str]:
    """Return the command that calls a module's `main()` in a new process, with `word` as `sys.argv[1]`.

    The working directory comes last in the import path.

    `python -m` would put the working directory first, and a `queue.py` there would replace the standard library's.
    (`python -P`, which turns that off, is missing in Python 3.10.)
    """
    return [sys.executable, "-c", START.format(module), word, *search_path()]


def search_path() -> list[str]:
    """Return `sys.path` for another process, with the working directory (`""`) moved to the end."""
    here = [os.getcwd()] if "" in sys.path else []
    return [os.path.abspath(path) for path in sys.path if path] + here
