"""What modules do between training steps: they adjust themselves, and report what they have counted.

A module that takes part has two methods. A step may read its batch in several pieces, or begin again with smaller ones
when memory runs out, so what it has counted is complete only when the step is.

    before_step(self) -> None                    forget what was counted
    after_step(self) -> dict[str, Tensor]        the optimizer has taken its step: adjust, and return figures
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def before_step(model: nn.Module) -> None:
    """Tell the modules that a step begins, or begins again."""
    for module in model.modules():
        if hasattr(module, "before_step"):
            module.before_step()


@torch.no_grad()
def after_step(model: nn.Module) -> dict[str, float]:
    """Tell the modules that a step has been taken; return their figures, each averaged over those that have it."""
    found: dict[str, list[Tensor]] = {}
    for module in model.modules():
        if hasattr(module, "after_step"):
            for name, figure in module.after_step().items():
                found.setdefault(name, []).append(figure)
    if not found:
        return {}
    # one tensor, so that a GPU is waited for once
    means = torch.stack([torch.stack(figures).float().mean() for figures in found.values()])
    return dict(zip(found, means.tolist()))
