"""Ctrl-C and SIGTERM: finish the step, and stop where the run can go on."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

STOPPING = b"\nStopping after this step; once more stops at once.\n"


class Interruption:
    """While it is entered, the first SIGINT or SIGTERM only sets `signal`; a second one acts as usual.

    Threads other than the main one, where Python doesn't allow signal handlers, go on undisturbed.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._held = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let no signal stop what is inside, such as writing the checkpoint that the first one asked for."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _note(self, number: int, frame: object) -> None:
        if self.signal is None:
            self.signal = number
            # a handler may run in the middle of a print, where another print would be an error
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.write(sys.__stderr__.fileno(), STOPPING)
        elif not self._held:
            self.__exit__()
            signal.raise_signal(number)
