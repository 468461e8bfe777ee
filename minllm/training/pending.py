"""What steps have computed on the device and the host hasn't read yet.

Reading a number waits until the device has computed it, and the device then waits for the host to start the next step.
On a GPU each step's figures are therefore copied to the host in the background, and read `LAG` steps later. Waiting for
them then also keeps the host at most that far ahead, so that the time between steps is the device's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LAG = 2
"""Steps that a GPU is given before the figures of the first of them are read."""


@dataclass
class StepMetrics:
    """The figures of step `step` (from 0), and the event after which they are on the host; None if they are there."""

    step: int
    names: list[str]
    values: Tensor
    copied: torch.cuda.Event | None


class PendingMetrics:
    """A queue of the latest steps' figures.

    Args:
        lag: how many steps are left in the queue. With 0, as on a CPU, each step is read as soon as it is done.
    """

    def __init__(self, lag: int = 0):
        self.lag = lag
        self.queue: deque[StepMetrics] = deque()

    def add(self, step: int, figures: dict[str, Tensor]) -> None:
        """Add a step's figures, which are scalars on one device, without waiting for them."""
        values = torch.stack([value.float() for value in figures.values()])
        copied = None
        if values.is_cuda:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            copied = torch.cuda.Event(blocking=True)
            copied.record()
        self.queue.append(StepMetrics(step, list(figures), values, copied))

    def read(self, everything: bool) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield the steps that are due, oldest first, with their figures; `everything` waits for the latest step."""
        while len(self.queue) > (0 if everything else self.lag):
            figures = self.queue.popleft()
            if figures.copied is not None:
                figures.copied.synchronize()
            yield figures.step, dict(zip(figures.names, figures.values.tolist()))
