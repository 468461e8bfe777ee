"""Computing in fp32 under autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Computed = TypeVar("Computed")


def in_fp32(compute: Callable[..., Computed], *inputs: Tensor | None) -> Computed:
    """Return `compute(*inputs)`, computed in fp32 even under autocast."""
    device = inputs[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # the meta device has no autocast
        return compute(*inputs)
    with torch.autocast(device, enabled=False):
        return compute(*(_float(x) for x in inputs))


def _float(x: Tensor | None) -> Tensor | None:
    return x.float() if x is not None and x.is_floating_point() else x
