"""Hooks that modules may define around training steps, to adjust themselves and to report metrics.

A step may process its batch in several micro-batches, or restart with smaller ones if memory runs out, so counts are
complete only after the step.

    before_step(self) -> None                    reset all counts
    counts(self) -> list[Tensor]                 what several processes add up before `after_step`, in place
    after_step(self) -> dict[str, Tensor]        called after the optimizer's step: adjust, and return metrics

Between steps, a model is evaluated and writes (`evaluating`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def before_step(model: nn.Module) -> None:
    """Notify the modules that a step begins or restarts."""
    for module in model.modules():
        if hasattr(module, "before_step"):
            module.before_step()


@torch.no_grad()
def after_step(
    model: nn.Module, add_up: Callable[[list[Tensor]], None] = lambda tensors: None
) -> dict[str, Tensor]:
    """Notify the modules that a step is done; return their metrics, each averaged over the modules that report it.

    They are scalars on the device, so that a GPU needn't wait until they are read.

    Args:
        add_up: replaces the modules' counts by their sums over all processes, in place.
    """
    add_up([count for module in model.modules() if hasattr(module, "counts") for count in module.counts()])
    found: dict[str, list[Tensor]] = {}
    for module in model.modules():
        if hasattr(module, "after_step"):
            for name, figure in module.after_step().items():
                found.setdefault(name, []).append(figure)
    return {name: torch.stack(figures).float().mean() for name, figures in found.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode in the body, and then back in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
