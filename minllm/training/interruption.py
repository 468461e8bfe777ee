"""Ctrl-C and SIGTERM: finish the current step, save a checkpoint, and stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

STOPPING = b"\nStopping after this step. Press Ctrl-C again to stop immediately.\n"


class Interruption:
    """A context in which the first SIGINT or SIGTERM only sets `signal`; a second one acts as usual.

    Has no effect outside the main thread, where Python doesn't allow signal handlers.

    Args:
        shown: print that training will stop.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
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
        """Ignore further signals in the body, such as while writing the checkpoint after the first one."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _note(self, number: int, frame: object) -> None:
        if self.signal is None:
            self.signal = number
            if not self.shown:
                return
            # not print(): the handler may run in the middle of another print
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.write(sys.__stderr__.fileno(), STOPPING)
        elif not self._held:
            self.__exit__()
            signal.raise_signal(number)
