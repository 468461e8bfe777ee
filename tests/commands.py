"""Command lines for tests, each in a process forked from one that has already imported torch and minllm.

A new interpreter needs three seconds for these imports, and the tests run more than a hundred commands. The forked
process has its own arguments, environment, working directory and standard streams, and ends like an interpreter:
uncaught exceptions, exit handlers and the exit code are the same.

    a test  ──a line of JSON──▶  the warm process  ──fork──▶  python run.py …
            ◀──exit code───────
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]

WARM = (
    "minllm.cli.main",
    "minllm.config.compose",
    "minllm.training.train",
    "minllm.laws.laws",
    "torch._dynamo",
)
"""What commands would import, most of them."""


def python(script: str, *words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python <script> <words>`, as `subprocess.run` with captured output.

    Args:
        script: `run.py` or `sweep.py`.
        variables: environment variables besides this process's own.
    """
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        argv = [str(ROOT / script), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        order = {"argv": argv, "cwd": str(cwd), "environment": environment, "out": out.name, "err": err.name}
        code = ask(order)
        return subprocess.CompletedProcess([sys.executable, *argv], code, text_of(out), text_of(err))


def ask(order: Mapping[str, Any]) -> int:
    """Have the warm process run a command, and return its exit code."""
    server = warm_process()
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


@functools.cache
def warm_process() -> subprocess.Popen[str]:
    """Start the process that commands are forked from. It ends when this process closes its standard input or ends."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.commands"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="backslashreplace")


def serve() -> dict[str, Any] | None:
    """Answer orders until there are no more; in a forked process, return the order that it has to execute."""
    answers = os.dup(1)
    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            return json.loads(line)
        _, status = os.waitpid(pid, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))
    return None


def become(order: Mapping[str, Any]) -> None:
    """Give this process the streams, the environment, the arguments and the import path of a command."""
    for target, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], os.O_WRONLY | os.O_APPEND),
        (2, order["err"], os.O_WRONLY | os.O_APPEND),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, target)
        os.close(opened)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    sys.argv[:] = order["argv"]
    given = filter(None, order["environment"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [os.path.dirname(os.path.realpath(sys.argv[0])), *given]


if __name__ == "__main__":
    for module in WARM:
        importlib.import_module(module)
    gc.freeze()  # otherwise each forked process would copy what it collects
    if (order := serve()) is not None:
        become(order)
        runpy.run_path(sys.argv[0], run_name="__main__")
