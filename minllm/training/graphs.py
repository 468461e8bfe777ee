"""CUDA graphs of training: a GPU's work for a micro-batch, which the host starts in a single call.

The host takes some microseconds to start a kernel, and the kernels of a small model are shorter than that. A CUDA graph
holds all kernels of a forward and backward pass, with the addresses that they read and write:

    inputs ──copy──►  fixed inputs  ──replay──►  loss, and gradients added up in fixed buffers

Only the work of the device is repeated. A pass in which the host decides something can't be captured (`why_not`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from minllm.data.batches import Rows
from minllm.errors import UserError
from minllm.objective import Objective
from minllm.training import memory
from minllm.training.settings import Settings

WARM_UP = 3
"""Passes before the capture. The first compiles, and the last is timed."""

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
        self.captures: bool | None = None if wanted == "auto" else wanted
        """None until it has been decided."""
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
        if self.captures is False:
            return self.add_gradient(rows, counted)
        self.shapes = self.shapes or signature(rows)
        if signature(rows) != self.shapes:
            return self.add_gradient(rows, counted)
        if self.passes < WARM_UP:
            return self._warm_up(rows, counted)
        if self.graph is None and not self._capture(rows, counted):
            return self.add_gradient(rows, counted)
        for fixed, given in zip(self.inputs.tensors(), rows.tensors(), strict=True):
            fixed.copy_(given)
        self.counted.copy_(counted)
        self._use_fixed_gradients()
        self.graph.replay()
        return self.loss

    def _warm_up(self, rows: Rows, counted: Tensor) -> Tensor:
        timed = self.captures is None and self.passes == WARM_UP - 1
        if timed:
            torch.cuda.synchronize()
        began, start, end = time.perf_counter(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
        with aside():
            start.record()
            loss = self.add_gradient(rows, counted)
            end.record()
        host = time.perf_counter() - began
        self.passes += 1
        if timed:
            end.synchronize()
            self._decide(host, start.elapsed_time(end) / 1e3)
        self.learning = [p for p in self.model.parameters() if p.grad is not None]
        return loss

    def _decide(self, host: float, device: float) -> None:
        self.captures = host >= HOST_BOUND * device
        self.say(
            f"{'Capturing' if self.captures else 'Not capturing'} CUDA graphs: a pass takes {device * 1e3:.1f} ms, in"
            f" which the host starts kernels for {host * 1e3:.1f} ms."
        )

    def _capture(self, rows: Rows, counted: Tensor) -> bool:
        """Capture a pass, which isn't computed yet; return whether that was possible."""
        self.inputs, self.counted = rows.copied(), counted.clone()
        before = {p: p.grad for p in self.learning}
        self.gradients = {p: torch.zeros_like(p) for p in self.learning}
        self._use_fixed_gradients()
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may allocate pinned memory meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.loss = self.add_gradient(self.inputs, self.counted)
        except RuntimeError as error:
            for p, gradient in before.items():
                p.grad = gradient
            self.release()
            if memory.ran_out(error) or "captur" not in str(error):
                raise
            if self.wanted is True:
                raise UserError(
                    "train.graphs=true isn't possible: in a pass of this model, the host waits for the device. Type"
                    " train.graphs=auto."
                ) from error
            self.captures = False
            self.say("Not capturing CUDA graphs: in a pass of this model, the host waits for the device.")
            return False
        self.graph = graph
        return True

    def _use_fixed_gradients(self) -> None:
        """Go on adding up gradients in the fixed buffers."""
        if empty := [gradient for p, gradient in self.gradients.items() if p.grad is None]:
            torch._foreach_zero_(empty)
        for p, gradient in self.gradients.items():
            if p.grad is not None and p.grad is not gradient:
                gradient.copy_(p.grad)
            p.grad = gradient


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
