"""Child processes forked after all imports, one for each run. They end when the parent ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Generic, TypeVar

from minllm.errors import UserError, disk_error, memory_error, printable
from minllm.page.terminal import BROKEN_PIPE, exit_code
from minllm.sweep import limits
from minllm.sweep.server import die_with_the_server, end_group, lead_a_group

T = TypeVar("T")

LOOK_SECONDS = 0.02
STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class End:
    """How a process ended: its exit code or signal, its duration, and its output."""

    code: int
    signal: str | None
    seconds: float
    out: str
    err: str

    @property
    def broken_pipe(self) -> bool:
        """Whether the reader of its output has closed the pipe."""
        return self.code == BROKEN_PIPE


@dataclass(frozen=True)
class Child(Generic[T]):
    what: T
    pid: int
    slot: int
    began: float
    out: IO[bytes] | None
    err: IO[bytes] | None


class Children(Generic[T]):
    """Runs up to `slots` processes at a time. A single one shares this process's output; several print at their end.

    Several processes share the machine's memory and processors equally, or have a GPU each. Ctrl-C and SIGTERM reach
    only this process, which passes them on: the first stops a run after its step, the second immediately.
    """

    def __init__(self, slots: int):
        self.slots = slots
        self.running: dict[int, Child[T]] = {}
        self.stopped_by = 0
        """The number of the first signal received, or 0."""
        self._signals = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Children[T]:
        import torch

        self._gpus = limits.gpus()
        self._bytes = limits.free_bytes(torch.device("cpu"), self.slots)
        self._threads = limits.threads_for(self.slots)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._forward_signal) for number in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*self.running]:
            end_group(pid)
            os.waitpid(pid, 0)
        self.running.clear()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def is_full(self) -> bool:
        return len(self.running) == self.slots

    def start(self, what: T, work: Callable[[], int], device: str | None) -> None:
        """Fork a process that calls `work` and exits with its result.

        Args:
            what: identifies the process; `ended` returns it.
            device: the device it uses, which determines what it shares with others.
        """
        slot = min({*range(self.slots)} - {child.slot for child in self.running.values()})
        out, err = (tempfile.TemporaryFile() if self.slots > 1 else None for _ in range(2))  # noqa: SIM115
        sys.stdout.flush(), sys.stderr.flush()  # or buffered output would be printed by both
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            pid = os.fork()
            if pid == 0:
                self._run_child(work, slot, device, [out, err])
            lead_a_group(pid)  # in parent and child, because either may run first
            self.running[pid] = Child(what, pid, slot, time.monotonic(), out, err)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    def ended(self) -> Iterator[tuple[T, End]]:
        """Wait until at least one process has ended; yield each one's `what` and how it ended."""
        while self.running:
            ends = [
                (pid, status)
                for pid in self.running
                for ended, status in [os.waitpid(pid, os.WNOHANG)]
                if ended
            ]
            for pid, status in ends:
                end_group(pid)  # processes that it started and left behind
                child = self.running.pop(pid)
                yield child.what, end_of(child, os.waitstatus_to_exitcode(status))
            if ends:
                return
            time.sleep(LOOK_SECONDS)

    def _forward_signal(self, number: int, _: object) -> None:
        self._signals += 1
        self.stopped_by = self.stopped_by or number
        for pid in self.running:
            with contextlib.suppress(OSError):
                os.killpg(pid, number if self._signals < 3 else signal.SIGKILL)

    def _run_child(
        self, work: Callable[[], int], slot: int, device: str | None, outputs: list[IO[bytes] | None]
    ):
        """Run the child process, from the fork to its exit."""
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            lead_a_group(os.getpid())
            die_with_the_server()
            for number, output in zip((1, 2), outputs):
                if output is not None:
                    os.dup2(output.fileno(), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            if self.slots > 1:
                self._share(slot, device)
            code = work()
            sys.stdout.flush()
        except UserError as error:
            print(printable(str(error)), file=sys.stderr)
            code = 2
        except SystemExit as end:
            code = exit_code(end)
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except BrokenPipeError:
            code = BROKEN_PIPE
        except BaseException as error:
            if sentence := disk_error(error) or memory_error(error):
                print(printable(str(sentence)), file=sys.stderr)
                code = 2
            else:
                traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def _share(self, slot: int, device: str | None) -> None:
        """Limit this process to its share of the machine."""
        import torch

        from minllm.training.machine import choose_device

        if self._gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        place = choose_device(device) if device else torch.device("cpu")
        limit = self._bytes
        if place.type == "cuda":
            on_one = -(-self.slots // len(self._gpus))
            limit = torch.cuda.get_device_properties(0).total_memory // on_one
        limits.offer_to_the_kernel()
        limits.hold_to(limit, self._threads, place)


def end_of(child: Child[T], status: int) -> End:
    texts = []
    for output in (child.out, child.err):
        if output is not None:
            output.seek(0)
        texts.append("" if output is None else output.read().decode("utf-8", "replace"))
        if output is not None:
            output.close()
    name = signal.Signals(-status).name if status < 0 else None
    return End(status if status >= 0 else 1, name, time.monotonic() - child.began, *texts)
