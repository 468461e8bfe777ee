"""What must not be rounded where everything around it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_fp32(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return `compute(*inputs)`, in fp32 under autocast too."""
    device = inputs[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # there is no autocast of mere shapes
        return compute(*inputs)
    with torch.autocast(device, enabled=False):
        return compute(*(one.float() for one in inputs))
