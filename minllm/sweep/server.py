"""The server process that trials are forked from (see processes.py).

It reads one order per line, and writes one line for each trial that has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NoReturn

from minllm.errors import is_full
from minllm.page.terminal import escape_unencodable
from minllm.sweep.processes import NO_ROOM

GRACE_SECONDS = 5.0
PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


@dataclass
class Child:
    """A running trial."""

    id: int
    """Of the order that started it."""
    pid: int
    kills_before: int
    """Number of processes that the kernel's out-of-memory killer had killed when this one started."""
    deadline: float
    timed_out: bool = False


@dataclass(frozen=True)
class Pipes:
    """The server's file descriptors."""

    orders: int
    answers: int
    wake: int
    """Readable after a signal has arrived."""
    woken: int


def main() -> None:
    """Serve until the search closes our standard input or dies."""
    escape_unencodable()
    orders, answers = take_over_standard_streams()
    imported = import_everything()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until now there were no trials to clean up
    pipes = Pipes(orders, answers, *os.pipe())
    os.set_blocking(pipes.wake, False)
    os.set_blocking(pipes.woken, False)
    signal.set_wakeup_fd(pipes.woken, warn_on_full_buffer=False)
    # only signals with a handler are written to the wakeup pipe
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, Child] = {}
    try:
        serve(pipes, imported, children)
    finally:
        for pid in children:
            end_group(pid)


def serve(pipes: Pipes, imported: Imported, children: dict[int, Child]) -> None:
    selector = selectors.DefaultSelector()
    selector.register(pipes.orders, selectors.EVENT_READ)
    selector.register(pipes.wake, selectors.EVENT_READ)
    unread = b""
    while True:
        ready = [key.fd for key, _ in selector.select(seconds_left(children))]
        if pipes.wake in ready:
            os.read(pipes.wake, 4096)
        if pipes.orders in ready:
            read = os.read(pipes.orders, 1 << 16)
            if not read:
                return
            *lines, unread = (unread + read).split(b"\n")
            for line in lines:
                begin(json.loads(line), pipes, imported, children)
        for end in reaped(children, imported):
            say(end, pipes)
        for child in children.values():
            if time.monotonic() > child.deadline:
                child.timed_out = True
                end_group(child.pid)


def begin(order: Mapping[str, Any], pipes: Pipes, imported: Imported, children: dict[int, Child]) -> None:
    """Start a trial; if its process can't be forked, report it as ended."""
    try:
        child = start(order, imported, close=astuple(pipes))
    except OSError as error:
        traceback.print_exc()
        no_memory = error.errno == errno.ENOMEM
        say(
            {"id": order["id"], "status": 1, "killed_for_memory": no_memory, "timed_out": False},
            pipes,
        )
    else:
        children[child.pid] = child


def say(answer: Mapping[str, Any], pipes: Pipes) -> None:
    os.write(pipes.answers, json.dumps(answer).encode() + b"\n")


def take_over_standard_streams() -> tuple[int, int]:
    """Return the descriptors for orders and answers; anything else that is printed goes to stderr."""
    orders, answers = os.dup(0), os.dup(1)
    with open(os.devnull, encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return orders, answers


@dataclass(frozen=True)
class Imported:
    """What takes seconds to import; forked processes have it right away."""

    perform: Any
    out_of_memory_kills: Any
    gpus: list[str]


def import_everything() -> Imported:
    from minllm.sweep import limits, prediction, trial

    prediction.warm_up()
    gc.collect()
    gc.freeze()  # garbage collection would copy memory pages that trials share
    return Imported(trial.perform, limits.out_of_memory_kills, limits.gpus())


def start(order: Mapping[str, Any], imported: Imported, close: tuple[int, ...]) -> Child:
    """Fork a trial's process."""
    kills_before = imported.out_of_memory_kills()
    pid = os.fork()
    if pid == 0:
        run_trial(order, imported, close)
    lead_a_group(pid)  # in parent and child, because either may come first
    # with a grace period, because a trial that stops itself leaves its measurements
    seconds = (order["minutes"] or float("inf")) * 60 + GRACE_SECONDS
    return Child(order["id"], pid, kills_before, time.monotonic() + seconds)


def run_trial(order: Mapping[str, Any], imported: Imported, close: tuple[int, ...]) -> NoReturn:
    """Run the trial in the forked process, and exit."""
    status = 1
    try:
        lead_a_group(os.getpid())
        die_with_the_server()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for end in close:
            os.close(end)
        if imported.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus_of(order, imported.gpus))
        if order.get("processes", 1) > 1:
            os.environ.update(one_of_several(order["processes"]))
        imported.perform(Path(order["folder"]), order["number"], order["storage"])
        status = 0
    except BaseException as error:
        status = NO_ROOM if is_full(error) else 1
        if status != NO_ROOM:
            traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # on a full disk
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def gpus_of(order: Mapping[str, Any], gpus: list[str]) -> list[str]:
    """Return the GPUs of a trial: as many as it has processes; slots share them if there aren't enough for all."""
    n = order.get("processes", 1)
    return [gpus[(order["slot"] * n + i) % len(gpus)] for i in range(min(n, len(gpus)))]


def one_of_several(size: int) -> dict[str, str]:
    """Fork the other processes of this trial; return the environment variables of each, as torchrun would set them.

    They belong to the trial's process group, which ends with its first process.
    """
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port = listening.getsockname()[1]
    rank = next((rank for rank in range(1, size) if os.fork() == 0), 0)
    if rank:
        die_with_the_server()
    return {
        **{
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
        },
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)},
    }


def reaped(children: dict[int, Child], imported: Imported) -> Iterator[dict[str, Any]]:
    """Remove the children that have ended, and yield how each did."""
    for pid in [*children]:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            end_group(pid)  # processes that it started and left behind
            yield answer(children.pop(pid), os.waitstatus_to_exitcode(status), imported.out_of_memory_kills())


def answer(child: Child, status: int, kills: int) -> dict[str, Any]:
    killed = status == -signal.SIGKILL and not child.timed_out
    return {
        "id": child.id,
        "status": status,
        "killed_for_memory": killed and kills > child.kills_before,
        "timed_out": child.timed_out,
    }


def seconds_left(children: Mapping[int, Child]) -> float | None:
    """Return the seconds until the next deadline; None without one."""
    first = min((child.deadline for child in children.values() if not child.timed_out), default=float("inf"))
    return None if first == float("inf") else max(0.0, first - time.monotonic()) + 0.01


def lead_a_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)


def end_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def die_with_the_server() -> None:
    """Make the kernel kill this process when its parent dies: the server, or a trial's first process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
