"""Jobs of submitit on this machine, forked instead of started as new interpreters (see warm.py).

Sessions and process groups are those that submitit makes, so that jobs can be found, interrupted and killed. Exit codes
of controllers are lost, and jobs run no exit handlers. The test of Slurm starts real interpreters.

    search  ──order──▶  a process forked before the search had threads  ──fork──▶  controller  ──fork──▶  job
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, NoReturn

from submitit.core import submission  # noqa: F401, so that jobs needn't
from submitit.local import local

FORK = multiprocessing.get_context("fork")


def fork_jobs() -> None:
    """Have this process, which mustn't have threads yet, fork the jobs that it gives to submitit."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        serve(theirs)
    theirs.close()
    asking = threading.Lock()

    class Controller:
        """Replaces `subprocess.Popen` where submitit starts a job's controller."""

        def __init__(self, args: Sequence[str], *, shell: bool, env: Mapping[str, str]):
            with asking:
                ours.sendall(json.dumps({"words": args[2:], "env": dict(env)}).encode())
                self.pid = int(ours.recv(64))
                self.ended = os.pidfd_open(self.pid)  # before the next order, with which it may be reaped

        def poll(self) -> int | None:
            return 0 if select.select([self.ended], [], [], 0)[0] else None

        def send_signal(self, number: int) -> None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.ended, number)

    def wait(job: local.LocalJob) -> None:
        """Wait until a job has ended, and notice it at once: submitit looks once a second."""
        select.select([job._process.ended], [], [])

    local.subprocess = SimpleNamespace(Popen=Controller)
    local.LocalJob.wait = wait
    local.LocalJob._results_timeout_s = 1  # a killed job leaves no result: 15 s would be waited for it


class Job:
    """Replaces `subprocess.Popen` where a controller starts a job."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        shell: bool,
        env: Mapping[str, str],
        stdout: IO[str],
        stderr: IO[str],
        encoding: str,
    ):
        streams = (stdout.fileno(), stderr.fileno())
        self.process = FORK.Process(target=perform, args=(args[3:], env, streams))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def serve(orders: socket.socket) -> NoReturn:
    """Fork the controllers that are ordered, until the search has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the search and the jobs
    folder = os.getcwd()
    os.chdir("/")  # nobody is to take this process for one of the search's
    while order := orders.recv(1 << 18):
        controller = FORK.Process(target=control, args=(json.loads(order), folder, orders))
        controller.start()
        orders.sendall(str(controller.pid).encode())
    os._exit(0)


def control(order: Mapping, folder: str, orders: socket.socket) -> None:
    orders.close()
    os.chdir(folder)
    local.subprocess = SimpleNamespace(Popen=Job)
    # submitit makes it later than a forked controller looks for it
    Path(order["words"][1].replace("%j", str(os.getpid()))).mkdir(parents=True, exist_ok=True)
    perform(order["words"], order["env"])


def perform(words: Sequence[str], env: Mapping[str, str], streams: Sequence[int] = ()) -> None:
    """Run `python -m <words>` in this process."""
    for target, stream in enumerate(streams, 1):
        os.dup2(stream, target)
    sys.stdout.reconfigure(write_through=True)  # as with python -u
    os.environ.clear()
    os.environ.update(env)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    sys.argv[:] = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
