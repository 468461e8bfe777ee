"""GPU kernels of optional packages, `pip install 'minllm[kernels]'`. Without them only the speed differs.

They are used for bf16 training on a GPU, and agree with the scans in `minllm.model.scans` to bf16 precision.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses import FakeTensor


def linear_kernel(
    module: str, name: str, x: Tensor, state_BHKV: Tensor | None, starts_BT: Tensor | None
) -> Callable | None:
    """Return a kernel of flash-linear-attention, or None; the kernels can't combine segments with an initial state."""
    return kernel(module, name, x) if state_BHKV is None or starts_BT is None else None


def kernel(module: str, name: str, x: Tensor) -> Callable | None:
    """Return the kernel for tensors such as x; None if it doesn't apply or isn't installed."""
    return _installed(module, name) if _wanted(x) else None


def _wanted(x: Tensor) -> bool:
    # a fake tensor has no values that a kernel could read
    return x.is_cuda and torch.is_autocast_enabled("cuda") and not isinstance(x, FakeTensor)


@torch.compiler.assume_constant_result
def _installed(module: str, name: str) -> Callable | None:
    # torch.compile would trace through the cache, and can't trace an import
    return _imported(module, name)


@functools.cache
def _imported(module: str, name: str) -> Callable | None:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return None


def linear_attention(
    run: Callable,
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    *,
    state_BHKV: Tensor | None,
    starts_BT: Tensor | None,
    **gates: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run a kernel of flash-linear-attention; return y_BTHV and the last state_BHKV.

    Packed rows are passed as one row, with the indices where segments begin.
    """
    times = v_BTHV.shape[2] // q_BTGK.shape[2]
    q_BTHK, k_BTHK = (x.repeat_interleave(times, dim=2) for x in (q_BTGK, k_BTGK))
    tensors = {"q": q_BTHK.bfloat16(), "k": k_BTHK.bfloat16(), "v": v_BTHV.bfloat16(), **gates}
    options = dict(scale=1.0, initial_state=state_BHKV, output_final_state=True)
    if starts_BT is None:
        return run(**tensors, **options)
    B, T = starts_BT.shape
    ends = starts_BT == torch.arange(T, device=starts_BT.device)
    places = torch.cat([ends.flatten().nonzero()[:, 0], ends.new_tensor([B * T], dtype=torch.int64)])
    in_one_row = {name: x.flatten(0, 1)[None] for name, x in tensors.items()}
    y_1THV, state_NHKV = run(**in_one_row, **options, cu_seqlens=places)
    last_of_rows = torch.searchsorted(places, torch.arange(1, B + 1, device=places.device) * T) - 1
    return y_1THV[0].unflatten(0, (B, T)), state_NHKV[last_of_rows]
