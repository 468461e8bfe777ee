"""Whether minllm's own GPU kernels can be used. Without them only the speed and the memory differ.

They need Triton, which comes with torch's builds for GPUs, and a C compiler.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sysconfig
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
