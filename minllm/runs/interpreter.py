"""Commands that start a minllm module in a new Python, with this process's import path."""

from __future__ import annotations

import os
import sys

import minllm

HOME = os.path.dirname(os.path.dirname(os.path.abspath(minllm.__file__)))
"""The folder of this process's minllm. Another process imports minllm from there before it gets its import path, in
which another clone, or an installed minllm, may come first."""

START = (
    "import sys; sys.path.insert(0, sys.argv[2]); import minllm; sys.path[:] = sys.argv[3:]; del sys.argv[2:];"
    " from {} import main; main()"
)


def command(module: str, word: str = "") -> list[str]:
    """Return the command that calls a module's `main()` in a new process, with `word` as `sys.argv[1]`.

    The working directory comes last in the import path.

    `python -m` would put the working directory first, and a `queue.py` there would replace the standard library's.
    (`python -P`, which turns that off, is missing in Python 3.10.)
    """
    return [sys.executable, "-c", START.format(module), word, HOME, *search_path()]


def search_path() -> list[str]:
    """Return `sys.path` for another process, with the working directory (`""`) moved to the end."""
    here = [os.getcwd()] if "" in sys.path else []
    return [os.path.abspath(path) for path in sys.path if path] + here
