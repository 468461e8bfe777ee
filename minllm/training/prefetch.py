"""The inputs of steps, prepared in a thread while the device computes the step before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Calls `prepare(step)` for the next step in a thread.

    What it raises is raised by `take`, for the step that it belongs to.
    """

    def __init__(self, prepare: Callable[[int], T], thread: ThreadPoolExecutor):
        self.prepare, self.thread = prepare, thread
        self.next: tuple[int, Future[T]] | None = None

    def take(self, step: int) -> T:
        """Return what was prepared for a step, and begin to prepare the next."""
        known, self.next = self.next, None
        future = known[1] if known and known[0] == step else self.thread.submit(self.prepare, step)
        result = future.result()
        self.next = step + 1, self.thread.submit(self.prepare, step + 1)
        return result


@contextmanager
def prefetching(prepare: Callable[[int], T]) -> Iterator[Prefetcher[T]]:
    """Prepare steps ahead in the body. The thread ends with it."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        yield Prefetcher(prepare, thread)
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
