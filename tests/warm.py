"""The process that the commands of tests are forked from, which has already imported torch and minllm.

A new interpreter needs two to three seconds for these imports, and the tests run some two hundred processes. A forked
process has its own arguments, environment, working directory and standard streams, and ends like an interpreter:
uncaught exceptions, exit handlers and the exit code are the same.

    tests  ──orders in JSON──▶  the warm process  ──fork──▶  python sweep.py …
           ◀──pid, exit code──         ▲          ──fork──▶  the server of its trials
                                       └─── its socket ──────┘ which that command asks for
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import io
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch._dynamo.utils

import minllm
from minllm.cli.api import train
from minllm.config.compose import compose
from minllm.sweep import processes, server
from tests.commands import OF_DATABASES, SOCKET
from tests.composing import compose_faster

IMPORTED = (
    *("hydra._internal.logging_config", "plotly.graph_objs._figure", "scipy.stats", "sentencepiece"),
    *OF_DATABASES,
)
"""What commands import besides minllm's modules."""
TINY = (
    *("tokenizer=bytes", "data.train_stories=20", "data.val_stories=2", "data.seq_len=32"),
    *("model.dim=16", "model.n_layers=1", "train.batch_size=2", "train.steps=2"),
    *("train.malloc=default", "train.device=cpu"),  # a process that has used a GPU can't be forked
)


class Forked:
    """Replaces `subprocess.Popen` where a command starts the server of its trials: the warm process forks it."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        start_new_session: bool,
        env: Mapping[str, str],
        encoding: str,
    ):
        assert start_new_session and stdin == stdout == subprocess.PIPE
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        self.stdin = open(ours_in, "w", encoding=encoding)  # noqa: SIM115
        self.stdout = open(ours_out, encoding=encoding)  # noqa: SIM115
        order = {"argv": args[3:4], "path": args[5:], "cwd": os.getcwd(), "environment": dict(env)}
        with socket.socket(socket.AF_UNIX) as to_warm_process:
            to_warm_process.connect(os.environ[SOCKET])
            socket.send_fds(to_warm_process, [b"{"], [theirs_in, theirs_out, 2])
            to_warm_process.sendall(json.dumps(order)[1:].encode())
            to_warm_process.shutdown(socket.SHUT_WR)
            self.pid = int(to_warm_process.recv(64))
        os.close(theirs_in), os.close(theirs_out)
        self._pidfd = os.pidfd_open(self.pid)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> None:
        ended, _, _ = select.select([self._pidfd], [], [], seconds)
        if not ended:
            raise subprocess.TimeoutExpired("the server", seconds)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)


def main() -> None:
    for module in (*modules(), *IMPORTED):
        importlib.import_module(module)
    if importlib.util.find_spec("submitit"):
        importlib.import_module("tests.warm_jobs")
    compose_faster()
    try:
        rehearse()
    except Exception:  # a bug in training; commands that don't train have to work
        traceback.print_exc()
    skip_exit_handlers()
    gc.collect()
    gc.freeze()  # otherwise each forked process would copy the memory that it collects
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    if command is None:
        shutil.rmtree(Path(os.environ[SOCKET]).parent)
    else:
        perform(command)


def modules() -> Iterator[str]:
    """Yield the names of minllm's modules, without kernels, which need a GPU's libraries."""
    for module in pkgutil.walk_packages(minllm.__path__, "minllm."):
        if not module.name.startswith("minllm.model.kernels."):
            yield module.name


def rehearse() -> None:
    """Compose and train a tiny model: Hydra, its grammar and torch keep what the first time finds."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train(compose([*TINY, f"data.cache={folder}"]), folder)


def skip_exit_handlers() -> None:
    """Skip those of torch, which take 0.07 s in each forked process: finalizers of its libraries, and a report."""
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False
    atexit.unregister(torch._dynamo.utils.dump_compile_times)


def perform(command: Mapping[str, Any]) -> None:
    """Run a command, and end as an interpreter does, but without freeing memory: that alone would take 0.3 s."""
    code = 0
    try:
        if "path" in command:
            server.main()
        else:
            runpy.run_path(command["argv"][0], run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    sys.exit(code)  # reports what can't be written


def serve(listening: socket.socket) -> Mapping[str, Any] | None:
    """Answer orders until standard input is closed; in a forked process, return the command that it has to become."""
    servers: list[int] = []
    while True:
        ready, _, _ = select.select([sys.stdin, listening], [], [], 0.1 if servers else None)
        servers = [pid for pid in servers if os.waitpid(pid, os.WNOHANG) == (0, 0)]
        if listening in ready:
            connection, _ = listening.accept()
            order, streams = received(connection)
            if order is None:
                answer = None
            elif "poll" in order:
                pid, status = os.waitpid(order["poll"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            elif (answer := forked()) == 0:
                connection.detach(), listening.detach()
                become(order, streams or opened(order["streams"]))
                return order
            elif streams:
                servers.append(answer)
            for stream in streams:
                os.close(stream)
            with contextlib.suppress(OSError):  # it may have been killed meanwhile
                connection.sendall(json.dumps(answer).encode())
            connection.close()
        if sys.stdin in ready:  # it was closed
            return None


def received(connection: socket.socket) -> tuple[Mapping[str, Any] | None, list[int]]:
    """Return an order, or None if its sender was killed meanwhile, and the standard streams that `Forked` sends."""
    streams: list[int] = []
    try:
        text, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        while more := connection.recv(1 << 16):
            text += more
        return json.loads(text), streams
    except (OSError, ValueError):
        return None, streams


def opened(paths: Sequence[str]) -> list[int]:
    """Return standard streams that read nothing and append to two files."""
    return [os.open(os.devnull, os.O_RDONLY), *(os.open(path, os.O_WRONLY | os.O_APPEND) for path in paths)]


def forked() -> int:
    """Fork; return the process's number once it leads a session, so that it can be killed with it, or 0 in it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(write)
        return 0
    os.close(write)
    os.read(read, 1)
    os.close(read)
    return pid


def become(command: Mapping[str, Any], streams: Sequence[int]) -> None:
    """Give this process the streams, environment, arguments and import path of a command, and close other files."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
    os.closerange(3, 256)
    own_socket = os.environ[SOCKET]
    os.environ.clear()
    os.environ.update({**command["environment"], SOCKET: own_socket})
    os.chdir(command["cwd"])
    if "path" in command:
        sys.argv[:], sys.path[:] = ["-c", *command["argv"]], command["path"]
        return
    sys.argv[:] = command["argv"]
    given = filter(None, command["environment"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [os.path.dirname(os.path.realpath(sys.argv[0])), *given]
    if hasattr(os, "pidfd_open"):
        processes.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": Forked})
        if "tests.warm_jobs" in sys.modules and "hydra/launcher=submitit_local" in sys.argv:
            sys.modules["tests.warm_jobs"].fork_jobs()


if __name__ == "__main__":
    main()
