"""Processes that train together in tests: forked from the test's own, so that nothing is imported again."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS = 120.0
"""After which processes that still wait for each other are killed."""


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """Give a port that nobody listens to."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        yield listening.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun sets."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return dict(zip(names, map(str, (rank, rank, size, size, "127.0.0.1", port))))


def together(size: int, act: Callable[[int], None], output: Path) -> list[int]:
    """Call `act(rank)` in each of `size` processes; return their exit codes, or minus the signals that killed them.

    What they print is in the file `output`.
    """
    with free_port() as port:
        pass
    sys.stdout.flush(), sys.stderr.flush()
    pids = [os.fork() or become(rank, size, port, act, output) for rank in range(size)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    try:
        while len(codes) < size:
            for rank, pid in enumerate(pids):
                if rank not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(ended[1])
            assert time.monotonic() < deadline, f"processes hang: {output.read_text()}"
            time.sleep(0.01)
    finally:
        for rank, pid in enumerate(pids):
            if rank not in codes:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
    return [codes[rank] for rank in range(size)]


def become(rank: int, size: int, port: int, act: Callable[[int], None], output: Path) -> None:
    """Be one of the processes; never return."""
    code = 1
    try:
        with output.open("a") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        os.environ.update(environment(rank, size, port))
        act(rank)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
