"""Command lines for tests, each in a process forked from one that has already imported torch and minllm.

A new interpreter needs two to three seconds for these imports, and the tests run more than a hundred commands. A forked
process has its own arguments, environment, working directory and standard streams, and ends like an interpreter:
uncaught exceptions, exit handlers and the exit code are the same.

    a test  ──a line of JSON──▶  the warm process  ──fork──▶  python run.py …
            ◀──pid, exit code──
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]

WARM = (
    *("minllm.cli.main", "minllm.config.compose", "minllm.grid.multirun", "minllm.training.train"),
    *("minllm.laws.laws", "minllm.sweep.search", "minllm.study.report", "torch._dynamo"),
)
"""What most commands import."""


def python(script: str, *words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python <script> <words>`, as `subprocess.run` with captured output.

    Args:
        script: `run.py` or `sweep.py`.
        variables: environment variables besides this process's own.
    """
    command = Command(script, *words, cwd=cwd, **variables)
    return subprocess.CompletedProcess(command.args, command.wait(), command.out, command.err)


class Command:
    """A command that has been started, and leads a session of its own; see `python` for the arguments."""

    def __init__(self, script: str, *words: str, cwd: Path, **variables: str):
        self.args = [str(ROOT / script), *words]
        self.returncode: int | None = None
        # files, because a pipe that nobody reads would stop the command
        self.files: list[IO[bytes]] = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115
        order = {"argv": self.args, "cwd": str(cwd), "streams": [file.name for file in self.files]}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        self.pid: int = _ask({"start": {**order, "environment": environment}})

    @property
    def out(self) -> str:
        return self._read(0)

    @property
    def err(self) -> str:
        return self._read(1)

    def poll(self) -> int | None:
        """Return the exit code, or minus the number of the signal that killed it; None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid})
        return self.returncode

    def wait(self, seconds: float | None = None) -> int:
        """Wait until it has ended, and return what `poll` does. AssertionError if it takes longer."""
        began = time.monotonic()
        while self.poll() is None:
            assert seconds is None or time.monotonic() < began + seconds, f"{self.args} takes too long"
            time.sleep(0.01)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def _read(self, number: int) -> str:
        return Path(self.files[number].name).read_text(encoding="utf-8", errors="backslashreplace")


def _ask(order: Mapping[str, Any]) -> Any:
    server = warm_process()
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@functools.cache
def warm_process() -> subprocess.Popen[str]:
    """Start the process that commands are forked from. It ends when this process closes its standard input or ends."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.commands"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


# ---- in the warm process -------------------------------------------------------------------------


def serve() -> Mapping[str, Any] | None:
    """Answer orders until there are no more; in a forked process, return the command that it has to become."""
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if "poll" in order:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            read, write = (
                os.pipe()
            )  # closed once the child leads its session, so that it can be killed with it
            answer = os.fork()
            if answer == 0:
                become(order["start"])
                return order["start"]
            os.close(write)
            os.read(read, 1)
            os.close(read)
        print(json.dumps(answer), flush=True)
    return None


def become(command: Mapping[str, Any]) -> None:
    """Give this process the session, streams, environment, arguments and import path of a command."""
    os.setsid()
    out, err = command["streams"]
    for target, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_APPEND), (2, err, os.O_APPEND)):
        opened = os.open(path, flags | (os.O_WRONLY if target else 0))
        os.dup2(opened, target)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["cwd"])
    sys.argv[:] = command["argv"]
    given = filter(None, command["environment"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [os.path.dirname(os.path.realpath(sys.argv[0])), *given]


if __name__ == "__main__":
    for module in WARM:
        importlib.import_module(module)
    gc.freeze()  # otherwise each forked process would copy the memory that it collects
    if (command := serve()) is not None:
        runpy.run_path(command["argv"][0], run_name="__main__")
