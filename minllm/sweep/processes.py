"""A process for each trial, forked from one that has imported everything: a start takes hundredths of a second.

    the search  ──lines of JSON──▶  the server  ──fork──▶  trial 7
                ◀──────────────────             ──fork──▶  trial 8

The server is alone in its process: it starts no thread and computes nothing, so that what it forks is sound. Each trial
leads a process group of its own, which the server ends when the trial has ended, when its time is up, and when the
search is gone, however that went.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path

from minllm.runs.interpreter import command

NO_ROOM = 74  # EX_IOERR of sysexits.h: the disk is full, and a trial could leave no outcome
PATIENCE_SECONDS = 10.0  # for a server to end its trials and itself


ENVIRONMENT = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Have torch count GPUs without starting CUDA, which can't be used any more in what is forked after that."""


class ProcessDied(Exception):
    """A trial's process ended without an outcome.

    status: its exit code, or minus the number of the signal that ended it
    killed_for_memory: the kernel ended a process for its memory meanwhile
    timed_out: the server ended it, since its time was up
    """

    def __init__(self, status: int, killed_for_memory: bool = False, timed_out: bool = False):
        super().__init__(status, killed_for_memory, timed_out)
        self.status, self.killed_for_memory, self.timed_out = status, killed_for_memory, timed_out


class ServerDied(Exception):
    """The process that trials are forked from is gone, and its trials with it: nothing can be said of them."""


class ForkServer:
    """The warm process, as the search sees it.

    Args:
        folder: the study's.
        storage: the study's database, if it has one.
        minutes: after which a trial is ended; None never.
        slots: how many trials run at once; each has a number of its own, and with it a GPU.
    """

    def __init__(self, folder: Path, storage: str | None, minutes: float | None, slots: int):
        self.order = {"folder": str(folder), "storage": storage, "minutes": minutes}
        self.free_slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self.free_slots.put(slot)
        self.ends: dict[int, Future[ProcessDied | None]] = {}
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

    def run(self, number: int) -> None:
        """Run a trial to its end.

        Raises:
            ProcessDied: it left no outcome.
            ServerDied: it may not even have begun.
        """
        slot = self.free_slots.get()
        end: Future[ProcessDied | None] = Future()
        try:
            with self.writing:
                if self.has_died:
                    raise ServerDied
                self.ends[number] = end
                order = json.dumps({**self.order, "number": number, "slot": slot})
                with contextlib.suppress(BrokenPipeError):  # which whoever listens notices too
                    self.process.stdin.write(order + "\n")
                    self.process.stdin.flush()
            died = end.result()
        finally:
            self.free_slots.put(slot)
        if died is not None:
            raise died

    def close(self) -> None:
        """End all trials that run, and the server."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.terminate()  # which it heeds while it imports, and has no trials
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:  # somebody has stopped it; its trials die with it
            self.process.kill()
            self.process.wait()

    def _listen(self) -> None:
        for line in self.process.stdout:
            answer = json.loads(line)
            end = self.ends.pop(answer.pop("number"))
            end.set_result(ProcessDied(**answer) if answer["status"] else None)
        with self.writing:
            self.has_died = True
        for end in self.ends.values():
            end.set_exception(ServerDied())
