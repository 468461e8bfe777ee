"""The doors of an installed minllm: `python -m minllm …` is run.py, and `python -m minllm sweep …` is sweep.py."""

from __future__ import annotations

import contextlib
import os
import sys

if (
    __name__ == "__main__"
):  # `python -m` looks in the working directory first, as run.py does in its own folder
    with contextlib.suppress(FileNotFoundError):  # it was removed, which the door says
        here = os.getcwd()
        sys.path.sort(key=lambda folder: os.path.realpath(folder) == here)

import runpy

from minllm.help import HOME


def main() -> None:
    door = "run.py"
    if sys.argv[1:2] == ["sweep"]:
        door = "sweep.py"
        del sys.argv[1]
    sys.argv[0] = str(HOME / door)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
