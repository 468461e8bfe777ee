"""Processes forked from this one, which has imported everything: each has a run, and ends when this one does."""

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

from minllm.door import BROKEN_PIPE
from minllm.errors import UserError, printable
from minllm.sweep import limits
from minllm.sweep.server import die_with_the_server, end_group, lead_a_group

T = TypeVar("T")

LOOK_SECONDS = 0.02
STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class End:
    """How a process ended: its exit code or the signal that ended it, how long it took, and what it printed."""

    code: int
    signal: str | None
    seconds: float
    out: str
    err: str

    @property
    def broken_pipe(self) -> bool:
        """Whether nobody reads any more what it prints."""
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
    """As many processes as there are slots. With one slot, it prints where this process does; else when it has ended.

    Several share this machine's memory and processors equally, or have a GPU each. Ctrl-C and SIGTERM reach this
    process alone, and are handed on: the first time a run stops after its step, the second time at once.
    """

    def __init__(self, slots: int):
        self.slots = slots
        self.running: dict[int, Child[T]] = {}
        self.stopped_by = 0
        """The number of the signal that stopped them, if one did."""
        self._signals = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Children[T]:
        import torch

        self._gpus = limits.gpus()
        self._bytes = limits.free_bytes(torch.device("cpu"), self.slots)
        self._threads = limits.threads_for(self.slots)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hand_on) for number in STOPS}
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
        """Fork a process that does `work`, whose result is its exit code.

        Args:
            what: what it's for; `ended` returns it.
            device: where it computes, which says what it shares with others.
        """
        slot = min({*range(self.slots)} - {child.slot for child in self.running.values()})
        out, err = (tempfile.TemporaryFile() if self.slots > 1 else None for _ in range(2))  # noqa: SIM115
        sys.stdout.flush(), sys.stderr.flush()  # or what is waiting would be printed by both
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_child(work, slot, device, [out, err])
            lead_a_group(pid)  # here too: whoever is first
            self.running[pid] = Child(what, pid, slot, time.monotonic(), out, err)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    def ended(self) -> Iterator[tuple[T, End]]:
        """Wait until a process has ended, and return what it was for and how it ended."""
        while self.running:
            ends = [
                (pid, status)
                for pid in self.running
                for ended, status in [os.waitpid(pid, os.WNOHANG)]
                if ended
            ]
            for pid, status in ends:
                end_group(pid)  # what it has started itself, and left
                child = self.running.pop(pid)
                yield child.what, end_of(child, os.waitstatus_to_exitcode(status))
            if ends:
                return
            time.sleep(LOOK_SECONDS)

    def _hand_on(self, number: int, _: object) -> None:
        self._signals += 1
        self.stopped_by = self.stopped_by or number
        for pid in self.running:
            with contextlib.suppress(OSError):
                os.killpg(pid, number if self._signals < 3 else signal.SIGKILL)

    def _be_child(
        self, work: Callable[[], int], slot: int, device: str | None, outputs: list[IO[bytes] | None]
    ):
        """Be the child, from the fork to its exit."""
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
            code = end.code if isinstance(end.code, int) else 1
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except BrokenPipeError:
            code = BROKEN_PIPE
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def _share(self, slot: int, device: str | None) -> None:
        """Hold this process to its share of the machine."""
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
