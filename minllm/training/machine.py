"""What this machine is best at: each choice that `auto` makes is made here, by asking or by measuring.

Where a choice has a reason to tell, the function returns it too, for the log.
"""

from __future__ import annotations

import shutil
import time
from typing import Literal

import torch

from minllm.errors import UserError

Precision = Literal["fp32", "bf16"]

COMPILE_SECONDS = 45.0
"""What compiling takes: 20 to 47 seconds were measured on two CPU cores."""

COMPILE_GAIN = 1.4
"""How many times as fast compiled steps are, at least; about 1.2 to 1.8 were measured."""

BF16_GAIN = 1.3
"""How many times as fast bf16 matrix products must be to pay for the casts around them."""


def choose_device(wanted: Literal["auto", "cpu", "cuda", "mps"]) -> torch.device:
    """Return the device to train on; auto is the fastest there is. UserError if `wanted` isn't there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name in there if there[name]))
    if not there[wanted]:
        raise UserError(
            f"train.device={wanted}, and torch {torch.__version__} finds no such device on this machine: use"
            " train.device=cpu, or auto for the fastest there is."
        )
    return torch.device(wanted)


def choose_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> tuple[Precision, str]:
    """Return the precision of matrix products. On a CPU, auto tries a small one in each."""
    if wanted != "auto":
        return wanted, "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU has it"
        return "fp32", "this GPU has no bf16"
    if device.type != "cpu":
        return "fp32", f"bf16 isn't tried on {device.type}"
    if not _onednn_has_bf16():
        return "fp32", "this processor has no instructions for bf16"
    ratio = _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)
    words = f"bf16 matrix products are {ratio:.2g} times as fast here"
    return ("bf16" if ratio > BF16_GAIN else "fp32"), words


def choose_compile(device: torch.device, seconds_left: float) -> tuple[bool, str]:
    """Return whether compiling now wins its time back in the `seconds_left` that the run would take without."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        return False, "there is no C++ compiler here"
    won = seconds_left * (1 - 1 / COMPILE_GAIN)
    words = (
        f"about {seconds_left:.0f} s are left, compiling takes {COMPILE_SECONDS:.0f} s and saves {won:.0f} s"
    )
    # twice as much as it takes: the estimate is rough, and a short run should begin at once
    return won > 2 * COMPILE_SECONDS, words


def _onednn_has_bf16() -> bool:
    # without it a bf16 product takes hundreds of times as long, and on a busy machine a small probe may not show it
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _product_seconds(dtype: torch.dtype) -> float:
    a = torch.ones(256, 256, dtype=dtype)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return min(seconds)
