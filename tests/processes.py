"""Processes that train together in tests: forked from the test's own, so that nothing is imported again."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from torch.distributed import TCPStore

SECONDS = 300.0
"""After which processes that still wait for each other are killed."""

END_SECONDS = 60.0
"""The same after one of them has failed."""


def together(size: int, act: Callable[[int], None], output: Path, restarts: int = 0) -> list[int]:
    """Call `act(rank)` in each of `size` processes; return their exit codes, or minus the signals that killed them.

    What they print is appended to the file `output`.

    Args:
        restarts: how often torchrun would have restarted them.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    sys.stdout.flush(), sys.stderr.flush()
    pids = [
        os.fork() or become(environment(rank, size, store.port, restarts), act, output)
        for rank in range(size)
    ]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    try:
        while len(codes) < size:
            for rank, pid in enumerate(pids):
                if rank not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(ended[1])
                    deadline = min(deadline, time.monotonic() + END_SECONDS if codes[rank] else deadline)
            assert time.monotonic() < deadline, f"processes hang: {with_stacks(pids, codes, output)}"
            time.sleep(0.01)
    finally:
        for rank, pid in enumerate(pids):
            if rank not in codes:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
    return [codes[rank] for rank in range(size)]


def with_stacks(pids: list[int], codes: dict[int, int], output: Path) -> str:
    """Return what processes have printed, and what each thread of those that haven't ended is doing."""
    for rank, pid in enumerate(pids):
        if rank not in codes:
            os.kill(pid, signal.SIGUSR1)
    time.sleep(1)
    return output.read_text(encoding="utf-8")


def environment(rank: int, size: int, port: int, restarts: int) -> dict[str, str]:
    """Return the variables that torchrun sets."""
    return {
        **{
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
        },
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"},
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
    }


def become(variables: dict[str, str], act: Callable[[int], None], output: Path) -> None:
    """Be one of the processes; never return."""
    code = 1
    try:
        with output.open("a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        # pytest has replaced them
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        os.environ.update(variables)
        faulthandler.register(signal.SIGUSR1, file=2)
        act(int(variables["RANK"]))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
