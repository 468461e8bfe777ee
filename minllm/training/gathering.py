"""The contents of a checkpoint of a sharded model, gathered from all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minllm.training.averaging import Average, averaged
from minllm.training.checkpoints import MODEL, UNAVERAGED
from minllm.training.parallel import full, is_sharded


@dataclass
class Contents:
    """The weights by file, and the optimizer's state."""

    weights: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]


def gather(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None, keep: bool = True
) -> Contents | None:
    """Return the contents of a checkpoint on the CPU; None if parameters aren't sharded.

    All processes must call it.

    Args:
        keep: whether this process needs them; otherwise their memory is freed one by one.
    """
    if not any(map(is_sharded, model.parameters())):
        return None
    weights = {UNAVERAGED: gathered(model.state_dict(), keep)} if average else {}
    with averaged(average):
        weights[MODEL] = gathered(model.state_dict(), keep)
    optimizer_state = gathered(optimizer.state_dict(), keep)
    return Contents(weights, optimizer_state) if keep else None


def gathered(value: Any, keep: bool) -> Any:
    """Return nested values in which no tensor is sharded; without tensors, unless `keep`."""
    if isinstance(value, Tensor):
        tensor = full(value.detach())
        return tensor.cpu().contiguous() if keep else None
    if isinstance(value, dict):
        return {key: gathered(each, keep) for key, each in value.items()}
    return [gathered(each, keep) for each in value] if isinstance(value, list) else value
