"""Which GPU kernels there are: minllm's own, and those of optional packages. Without them only the speed differs.

minllm's own need Triton, which comes with torch's builds for GPUs, and a C compiler. Those of
`pip install 'minllm[kernels]'` are used for bf16 training on a GPU, and agree with the scans in `minllm.model.scans` to
bf16 precision.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch._subclasses import FakeTensor


def _can_build_kernels() -> bool:
    """Whether Triton is installed, with the C compiler and Python's headers that it needs to launch a kernel."""
    if importlib.util.find_spec("triton") is None:
        return False
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    has_headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return os.name == "nt" or (compiler is not None and has_headers)  # Triton for Windows brings both


HAS_TRITON = _can_build_kernels()


def own_kernels(name: str, *inputs: Tensor | None) -> ModuleType | None:
    """Return `minllm.model.kernels.<name>`; None without Triton or a GPU, or if an input isn't in fp32.

    None for fake tensors, too, which have no values that a kernel could read.
    """
    tensors = [x for x in inputs if x is not None]
    single = {x.dtype for x in tensors} in ({torch.float32}, {torch.complex64})
    real = not any(isinstance(x, FakeTensor) for x in tensors)
    applies = single and real and all(x.is_cuda for x in tensors) and HAS_TRITON
    return importlib.import_module(f"minllm.model.kernels.{name}") if applies else None


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
