"""Command lines for tests, each in a process forked from the warm process (tests/warm.py)."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]

PATIENCE = 1800.0
"""Seconds after which a process counts as stuck: only a hang may fail a test, not a busy machine."""

SOCKET = "SOCKET_OF_WARM_PROCESS"
"""The environment variable with the path of the warm process's socket."""

OF_DATABASES = (
    *("optuna.storages._rdb.storage", "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql.psycopg"),
    *("alembic.command", "alembic.config", "alembic.migration", "alembic.script"),
)
"""What Optuna imports when it opens a study in a database."""


def python(script: str, *words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python <script> <words>`, as `subprocess.run` with captured output.

    Args:
        script: `run.py` or `sweep.py`, or the path of another.
        variables: environment variables besides this process's own.
    """
    command = Command(script, *words, cwd=cwd, **variables)
    try:
        code = command.wait(PATIENCE)
    except AssertionError as error:
        os.killpg(command.pid, signal.SIGKILL)
        raise AssertionError(f"{error}\n{command.err}") from error
    return subprocess.CompletedProcess(command.args, code, command.out, command.err)


class Command:
    """A command that has been started, and leads a session of its own; see `python` for the arguments."""

    def __init__(self, script: str, *words: str, cwd: Path, **variables: str):
        self.args = [str(ROOT / script), *words]
        self.returncode: int | None = None
        # files, because a pipe that nobody reads would stop the command
        self.files: list[IO[bytes]] = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115
        order = {"argv": self.args, "cwd": str(cwd), "streams": [file.name for file in self.files]}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        self.pid: int = _ask({**order, "environment": environment})

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
            self._rest()
        return self.returncode

    def _rest(self) -> None:
        """Wait until it has ended, for at most a second; where the system can't tell, for a moment."""
        if not hasattr(os, "pidfd_open"):
            time.sleep(0.01)
            return
        process = os.pidfd_open(self.pid)
        try:
            ended = select.poll()
            ended.register(process)
            ended.poll(1000)
        finally:
            os.close(process)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def _read(self, number: int) -> str:
        return Path(self.files[number].name).read_text(encoding="utf-8", errors="backslashreplace")


def _ask(order: Mapping[str, Any]) -> Any:
    warm_process()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        connection.sendall(json.dumps(order).encode())
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(64)
    assert answer, "the warm process has ended"
    return json.loads(answer)


@functools.cache
def warm_process() -> subprocess.Popen[bytes] | None:
    """Start the process that commands are forked from, unless the process that has started this one has done so.

    Orders wait in its socket until it is ready. It ends when this process ends or closes its standard input: that is
    why the result is kept.
    """
    if SOCKET in os.environ:
        return None
    os.environ[SOCKET] = str(Path(tempfile.mkdtemp(), "socket"))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.environ[SOCKET])
        listening.listen()
        return subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(listening.fileno())],
            cwd=ROOT,
            # asking whether there is a GPU must not begin to use it
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,  # which commands may replace by pipes and files, and Python doesn't seek in
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
