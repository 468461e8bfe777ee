"""The choices that `auto` makes for this machine, by querying it or by measuring.

Most functions also return the reason, for the log.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from typing import Literal

import torch

from minllm.errors import UserError
from minllm.model.kernels import own

Precision = Literal["fp32", "bf16"]
MatmulPrecision = Literal["highest", "high", "medium"]

COMPILE_SECONDS = 45.0
"""Estimated compile time; 20 to 47 seconds were measured on two CPU cores."""

COMPILE_GAIN = 1.4
"""Estimated speed-up of compiled steps; about 1.2 to 1.8 were measured."""

BF16_GAIN = 1.3
"""Speed-up of bf16 matrix products needed to make up for the casts around them."""


def choose_device(wanted: Literal["auto", "cpu", "cuda", "mps"]) -> torch.device:
    """Return the device to train on; auto is the fastest available. UserError if `wanted` isn't available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name in available if available[name]))
    if not available[wanted]:
        raise UserError(
            f"train.device={wanted} is not available: torch {torch.__version__} finds no such device. Use"
            " train.device=cpu, or auto for the fastest available."
        )
    return torch.device(wanted)


def choose_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> tuple[Precision, str]:
    """Return the precision of matrix products and the reason. On a CPU, auto times a small product in each."""
    if wanted != "auto":
        return wanted, "as requested"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "supported by this GPU"
        return "fp32", "this GPU doesn't support bf16"
    if device.type != "cpu":
        return "fp32", f"bf16 isn't used on {device.type}"
    if not _onednn_has_bf16():
        return "fp32", "this processor has no instructions for bf16"
    ratio = _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)
    reason = f"bf16 matrix products are {ratio:.2g} times as fast here"
    return ("bf16" if ratio > BF16_GAIN else "fp32"), reason


@contextlib.contextmanager
def matmul_precision(wanted: MatmulPrecision) -> Iterator[None]:
    """Set the precision of fp32 matrix products, which torch keeps for the process, in the body only."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_compile(device: torch.device, seconds_left: float) -> tuple[bool, str]:
    """Return whether compiling now saves time, and the reason; `seconds_left` is the estimate without compiling."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        return False, "no C++ compiler was found"
    if device.type == "cuda" and own.WHY_NOT is not None:
        return False, own.WHY_NOT
    saved = seconds_left * (1 - 1 / COMPILE_GAIN)
    reason = f"about {seconds_left:.0f} s are left, compiling takes {COMPILE_SECONDS:.0f} s and saves {saved:.0f} s"
    # require twice the compile time: the estimate is rough, and a short run shouldn't wait
    return saved > 2 * COMPILE_SECONDS, reason


def _onednn_has_bf16() -> bool:
    # without it, bf16 products are hundreds of times slower, which a small probe may miss on a busy machine
    if not torch.backends.mkldnn.is_available():
        return False
    # a private operator, which a build of torch may lack
    return hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and (
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _product_seconds(dtype: torch.dtype) -> float:
    a = torch.ones(256, 256, dtype=dtype)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return min(seconds)
