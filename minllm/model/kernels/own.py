"""Whether minllm's own GPU kernels can be used. Without them only the speed and the memory differ.

They need Triton, which comes with torch's builds for GPUs, and what Triton needs to launch a kernel.
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


def why_not() -> str | None:
    """Return why kernels can't be built, in Triton's own order of looking; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton isn't installed"
    if os.name == "nt":  # Triton for Windows brings a compiler and Python's headers
        return None
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "neither gcc nor clang was found"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # for Debian's Pythons
    if not Path(sysconfig.get_path("include", scheme), "Python.h").exists():
        return "Python's headers weren't found"
    return None


WHY_NOT = why_not()


def own_kernels(name: str, *inputs: Tensor | None) -> ModuleType | None:
    """Return `minllm.model.kernels.<name>`; None without Triton or a GPU, or if an input isn't in fp32.

    None for fake tensors, too, which have no values that a kernel could read.
    """
    tensors = [x for x in inputs if x is not None]
    single = {x.dtype for x in tensors} in ({torch.float32}, {torch.complex64})
    real = not any(isinstance(x, FakeTensor) for x in tensors)
    applies = single and real and all(x.is_cuda for x in tensors) and WHY_NOT is None
    return importlib.import_module(f"minllm.model.kernels.{name}") if applies else None
