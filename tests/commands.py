"""Command lines for tests, each in a process forked from the warm process (tests/warm.py)."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]


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
        [sys.executable, "-m", "tests.warm"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
