"""A process for each trial, forked from one that has already imported everything, so it starts within milliseconds.

    the search  ──lines of JSON──▶  the server  ──fork──▶  trial 7
                ◀──────────────────             ──fork──▶  trial 8

The server starts no threads and computes nothing, so that forking it is safe. Each trial leads its own process group,
which the server kills when the trial has ended, when its time is up, and when the search is gone for any reason.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import subprocess
import threading
from concurrent.futures import Future
from dataclasses import asdict, dataclass

from minllm.runs.interpreter import command

NO_ROOM = 74  # EX_IOERR of sysexits.h: the disk is full, so the trial couldn't write its outcome
PATIENCE_SECONDS = 10.0  # for the server to stop its trials and exit


ENVIRONMENT = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Makes torch count GPUs without initializing CUDA, which would make it unusable in forked processes."""


class ProcessDied(Exception):
    """A trial's process ended without an outcome.

    status: its exit code, or minus the number of the signal that killed it
    killed_for_memory: the kernel's out-of-memory killer was active in the meantime
    timed_out: the server killed it because its time was up
    """

    def __init__(self, status: int, killed_for_memory: bool = False, timed_out: bool = False):
        super().__init__(status, killed_for_memory, timed_out)
        self.status, self.killed_for_memory, self.timed_out = status, killed_for_memory, timed_out


class ServerDied(Exception):
    """The process that trials are forked from has died, and its trials with it; their outcomes are unknown."""


@dataclass(frozen=True)
class TrialOrder:
    """A trial to run.

    folder: the study's folder
    number: the trial's number
    storage: the study's database, or None
    minutes: its time limit; None for no limit
    processes: how many processes train it together
    """

    folder: str
    number: int
    storage: str | None = None
    minutes: float | None = None
    processes: int = 1


class ForkServer:
    """A handle on the server process, which several searches may share.

    Args:
        slots: number of trials that run at once; the slot's number selects the GPU.
    """

    def __init__(self, slots: int):
        self.free_slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self.free_slots.put(slot)
        self.ids = itertools.count()
        self.ends: dict[int, Future[ProcessDied | None]] = {}
        """By the id of the order."""
        self.has_died = False
        self.writing = threading.Lock()
        self.process = subprocess.Popen(
            command("minllm.sweep.server"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C on the terminal is for the search, which then ends the trials
            start_new_session=True,
            env={**os.environ, **ENVIRONMENT},
            encoding="utf-8",
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, trial: TrialOrder) -> None:
        """Run a trial and wait until it has ended.

        Raises:
            ProcessDied: the trial left no outcome.
            ServerDied: the server died; the trial may not even have started.
        """
        slot = self.free_slots.get()
        end: Future[ProcessDied | None] = Future()
        try:
            with self.writing:
                if self.has_died:
                    raise ServerDied
                id = next(self.ids)
                self.ends[id] = end
                order = json.dumps({**asdict(trial), "id": id, "slot": slot})
                with contextlib.suppress(BrokenPipeError):  # _listen notices it too
                    self.process.stdin.write(order + "\n")
                    self.process.stdin.flush()
            died = end.result()
        finally:
            self.free_slots.put(slot)
        if died is not None:
            raise died

    def close(self) -> None:
        """Stop all running trials and the server."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.terminate()  # only effective while it imports and has no trials
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:  # it was suspended; its trials die with it
            self.process.kill()
            self.process.wait()

    def _listen(self) -> None:
        for line in self.process.stdout:
            answer = json.loads(line)
            end = self.ends.pop(answer.pop("id"))
            end.set_result(ProcessDied(**answer) if answer["status"] else None)
        with self.writing:
            self.has_died = True
        for end in self.ends.values():
            end.set_exception(ServerDied())
