"""Entry points of an installed minllm: `python -m minllm …` is run.py, and `python -m minllm sweep …` is sweep.py."""

from __future__ import annotations

import contextlib
import os
import sys

if (
    __name__ == "__main__"
):  # `python -m` searches the working directory first, where a queue.py would hide Python's
    with contextlib.suppress(FileNotFoundError):  # a removed working directory; run.py reports it
        here = os.getcwd()
        sys.path.sort(key=lambda folder: os.path.realpath(folder) == here)

import runpy

from minllm.schema.groups import HOME


def main() -> None:
    script = "run.py"
    if sys.argv[1:2] == ["sweep"]:
        script = "sweep.py"
        del sys.argv[1]
    sys.argv[0] = str(HOME / script)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
