"""CUDA graphs of training: a GPU's work for a micro-batch, which the host starts in a single call.

The host takes some microseconds to start a kernel, and the kernels of a small model are shorter than that. A CUDA graph
holds all kernels of a forward and backward pass, with the addresses that they read and write:

    inputs ──copy──►  fixed inputs  ──replay──►  loss, and gradients added up in fixed buffers

Only the work of the device is repeated. A pass in which the host decides something can't be captured (`why_not`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from minllm.data.batches import Rows
from minllm.errors import UserError
from minllm.objective import Objective
from minllm.training.settings import Settings

WARM_UP = 3
"""Passes before the capture. The first compiles, and the last is observed."""

HOST_BOUND = 0.5
"""With `train.graphs=auto`, passes are captured if the host needs this share of their time to start them."""

AddGradient = Callable[[Rows, Tensor], Tensor]
"""Adds the gradient of the mean loss of some rows of a batch, given its number of targets; returns that loss."""


def check_graphs(settings: Settings, model: nn.Module, objective: Objective, device: torch.device) -> None:
    """Raise UserError if `train.graphs=true` isn't possible."""
    reason = why_not(settings, model, objective, device)
    if settings.graphs is True and reason:
        raise UserError(f"train.graphs=true isn't possible: {reason}. Type train.graphs=auto.")


def why_not(settings: Settings, model: nn.Module, objective: Objective, device: torch.device) -> str | None:
    """Return why the passes of a compiled run can't be captured; None if they can."""
    if device.type != "cuda":
        return f"there are no CUDA graphs on {device.type}"
    if settings.recompute != "none":
        return "with train.recompute, the host keeps the states of random number generators"
    if objective.learns_its_inputs or objective.passes_vary:
        return "the passes of this objective differ from step to step"
    for module in model.modules():
        if hasattr(module, "before_step") or hasattr(module, "after_step"):
            return f"{type(module).__name__} keeps counts of each step"
    return None


class GradientGraph:
    """Adds the gradients of micro-batches by replaying a CUDA graph, if they have the shapes of the first one.

    Others are computed as usual. The first passes are too, and the graph's memory isn't available to anything else
    until `release`.

    Args:
        model: the model, whose passes can be captured (`why_not`).
        add_gradient: what is captured.
        wanted: `train.graphs`.
        say: called with a sentence when it has been decided whether to capture.
    """

    def __init__(
        self,
        model: nn.Module,
        add_gradient: AddGradient,
        wanted: Literal["auto"] | bool,
        say: Callable[[str], None],
    ):
        self.model, self.add_gradient, self.wanted, self.say = model, add_gradient, wanted, say
        self.captures = bool(wanted)
        """Whether passes are captured after the warm-up, as far as that has been decided."""
        self.release()

    def release(self) -> None:
        """Free the graph and its memory; the next micro-batch decides the shapes of a new one."""
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Rows | None = None
        self.counted: Tensor | None = None
        self.loss: Tensor | None = None
        self.learning: list[nn.Parameter] = []
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self.shapes: object = None
        self.passes = 0

    def __call__(self, rows: Rows, counted: Tensor) -> Tensor:
        if not self.captures:
            return self.add_gradient(rows, counted)
        self.shapes = self.shapes or signature(rows)
        if signature(rows) != self.shapes:
            return self.add_gradient(rows, counted)
        if self.passes < WARM_UP:
            return self._warm_up(rows, counted)
        if self.graph is None:
            self._capture(rows, counted)
        for fixed, given in zip(self.inputs.tensors(), rows.tensors(), strict=True):
            fixed.copy_(given)
        self.counted.copy_(counted)
        self._use_fixed_gradients()
        self.graph.replay()
        return self.loss

    def _warm_up(self, rows: Rows, counted: Tensor) -> Tensor:
        self.passes += 1
        is_last = self.passes == WARM_UP
        if is_last:
            torch.cuda.synchronize()
        began, start, end = time.perf_counter(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
        with aside(), host_waits() if is_last else nullcontext() as waits:
            start.record()
            # copies, as in a capture: for views of a batch, other code might be compiled, and for copies in the capture
            loss = self.add_gradient(rows.copied(), counted)
            end.record()
        host = time.perf_counter() - began
        if is_last:
            self.learning = [p for p in self.model.parameters() if p.grad is not None]
            end.synchronize()
            self._decide(host, start.elapsed_time(end) / 1e3, bool(waits))
        return loss

    def _decide(self, host: float, device: float, waits: bool) -> None:
        """Decide whether to capture, given the seconds of a pass, and those in which the host started kernels."""
        reason = "in a pass of this model, the host waits for the device"
        if self.wanted is True and waits:
            raise UserError(f"train.graphs=true isn't possible: {reason}. Type train.graphs=auto.")
        self.captures = not waits and (self.wanted is True or host >= HOST_BOUND * device)
        if not waits:
            reason = f"a pass takes {device * 1e3:.1f} ms, in which the host starts kernels for {host * 1e3:.1f} ms"
        self.say(f"{'Capturing' if self.captures else 'Not capturing'} CUDA graphs: {reason}.")

    def _capture(self, rows: Rows, counted: Tensor) -> None:
        """Capture a pass without computing it."""
        self.inputs, self.counted = rows.copied(), counted.clone()
        self.gradients = {p: torch.zeros_like(p) for p in self.learning}
        self._use_fixed_gradients()
        graph = torch.cuda.CUDAGraph()
        # "thread_local", because the thread that prepares batches may allocate pinned memory meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.loss = self.add_gradient(self.inputs, self.counted)
        self.graph = graph

    def _use_fixed_gradients(self) -> None:
        """Go on adding up gradients in the fixed buffers."""
        if empty := [gradient for p, gradient in self.gradients.items() if p.grad is None]:
            torch._foreach_zero_(empty)
        for p, gradient in self.gradients.items():
            if p.grad is not None and p.grad is not gradient:
                gradient.copy_(p.grad)
            p.grad = gradient


@contextmanager
def host_waits() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings of the operations in the body at which the host waits for the device.

    These operations can't be captured, and an attempt would leave torch's random number generators unusable.
    """
    before = torch.cuda.get_sync_debug_mode()
    waits: list[warnings.WarningMessage] = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield waits
    finally:
        torch.cuda.set_sync_debug_mode(before)
    waits += [warning for warning in caught if "synchroniz" in str(warning.message)]


@contextmanager
def aside() -> Iterator[None]:
    """Compute the body on another stream, as a pass must be before it is captured."""
    stream, usual = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(usual)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        usual.wait_stream(stream)


def signature(value: object) -> object:
    """Return what must be equal for a graph to apply to rows: the shapes of their tensors, and all other values."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, Rows):
        return tuple(map(signature, vars(value).values()))
    return tuple(map(signature, value)) if isinstance(value, (list, tuple)) else value
