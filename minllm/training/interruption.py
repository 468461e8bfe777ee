"""Ctrl-C and SIGTERM: finish the step, and stop where the run can go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable


class Interruption:
    """While it is entered, the first SIGINT or SIGTERM only sets `signal`; a second one acts as usual.

    Threads other than the main one, where Python doesn't allow signal handlers, go on undisturbed.
    """

    def __init__(self, say: Callable[[str], None]):
        self.signal: int | None = None
        self._say = say
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

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        self.__exit__()
        self._say("Stopping after this step; once more stops at once.")
