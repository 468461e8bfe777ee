"""Model FLOPs utilisation: the share of a device's peak that a model's own FLOPs make up (PaLM, 2204.02311).

    mfu = tokens per second · FLOPs per token / peak FLOP/s

FLOPs are those of matrix products in a forward and a backward pass (`minllm.model.cost`). What is recomputed to save
memory (`train.recompute`) doesn't count.
"""

from __future__ import annotations

import functools
import math
import re
import time
from typing import Literal, NamedTuple

import torch

from minllm.model.cost import flops_per_token
from minllm.training.machine import MatmulPrecision, Precision
from minllm.training.run import Run

COUNTED_AFTER = 60.0
"""Seconds of training before FLOPs are counted for the lines of metrics, which takes a second or two."""


LONGEST = 0.01
"""Seconds that a product may take which measures a device's peak: every run does so, however short."""


class Datasheet(NamedTuple):
    """Peaks in TFLOP/s of dense matrix products, without sparsity; None where the device has no such units.

    bf16: with sums in fp32
    """

    bf16: float | None
    tf32: float | None
    fp32: float


DATASHEETS = {
    # NVIDIA A100 Tensor Core GPU datasheet
    r"NVIDIA A100[- ](SXM4|PCIE|PCIe|80GB PCIe).*": Datasheet(312, 156, 19.5),
    # NVIDIA H100 Tensor Core GPU datasheet, whose figures with sparsity are halved here
    r"NVIDIA H100 80GB HBM3": Datasheet(989.4, 494.7, 66.9),
    r"NVIDIA H100 PCIe": Datasheet(756.5, 378.3, 51.2),
    r"NVIDIA H100 NVL": Datasheet(835.5, 417.5, 60.0),
    # NVIDIA H200 Tensor Core GPU datasheet (SXM)
    r"NVIDIA H200": Datasheet(989.4, 494.7, 66.9),
    # NVIDIA DGX B200 datasheet, an eighth of eight GPUs
    r"NVIDIA B200": Datasheet(2250, 1125, 75),
    # NVIDIA L4, L40S and A10 datasheets
    r"NVIDIA L4": Datasheet(121, 60, 30.3),
    r"NVIDIA L40S": Datasheet(362, 183, 91.6),
    r"NVIDIA A10": Datasheet(125, 62.5, 31.2),
    # NVIDIA T4 and V100 datasheets; their tensor cores have fp16 only
    r"(Tesla|NVIDIA) T4": Datasheet(None, None, 8.1),
    r"Tesla V100-SXM2.*": Datasheet(None, None, 15.7),
    r"Tesla V100-PCIE.*": Datasheet(None, None, 14.0),
    # whitepapers of the GA102, Ada and RTX Blackwell architectures
    r"NVIDIA GeForce RTX 3090": Datasheet(71, 35.6, 35.6),
    r"NVIDIA GeForce RTX 4090": Datasheet(165.2, 82.6, 82.6),
    r"NVIDIA GeForce RTX 5090": Datasheet(209.5, 104.8, 104.8),
}
"""By the whole name that torch reports, so that variants with other peaks, such as MIG slices, are measured."""


class Peak(NamedTuple):
    """A device's peak in FLOP/s, and where it comes from."""

    flops: float
    source: Literal["datasheet", "measured"]


def utilisation(run: Run, tokens_per_second: float) -> dict[str, float]:
    """Return `mfu` for a line of metrics; empty in the first minute, unless the FLOPs are known."""
    if math.isnan(run.flops_per_token):
        if run.progress.seconds < COUNTED_AFTER:
            return {}
        run.flops_per_token = flops_per_token(run.model, run.tokens_per_step // run.settings.batch_size)
    return {"mfu": mfu(run, tokens_per_second, run.flops_per_token)}


def mfu(run: Run, tokens_per_second: float, flops_per_token: float) -> float:
    devices = run.processes.place.size
    return tokens_per_second * flops_per_token / (devices * peak_of(run).flops)


def peak_of(run: Run) -> Peak:
    """Return the peak of the run's device in the precision of its matrix products."""
    return device_peak(run.device, run.precision, run.settings.matmul_precision)


@functools.cache
def device_peak(device: torch.device, precision: Precision, matmul_precision: MatmulPrecision) -> Peak:
    """Return a device's peak: that of its datasheet, else that of a large matrix product, measured now."""
    if device.type == "cuda":
        known = published(torch.cuda.get_device_name(device), precision, matmul_precision)
        if known is not None:
            return Peak(known, "datasheet")
    return Peak(measured(device, torch.bfloat16 if precision == "bf16" else torch.float32), "measured")


def published(name: str, precision: Precision, matmul_precision: MatmulPrecision) -> float | None:
    """Return the FLOP/s in the datasheet of a GPU; None if it isn't known."""
    sheet = next((sheet for pattern, sheet in DATASHEETS.items() if re.fullmatch(pattern, name)), None)
    if sheet is None:
        return None
    if precision == "bf16":
        teraflops = sheet.bf16
    elif matmul_precision == "highest":
        teraflops = sheet.fp32
    else:
        teraflops = sheet.tf32 or sheet.fp32
    return None if teraflops is None else teraflops * 1e12


def measured(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the largest matrix product that takes little time."""
    best = product_flops(256, device, dtype)
    for size in {"cuda": (2048, 4096, 8192), "mps": (2048,)}.get(device.type, (512, 1024, 2048)):
        if 2 * size**3 / best < LONGEST:
            best = max(best, product_flops(size, device, dtype))
    return best


def product_flops(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a product of two square matrices, the best of a few."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    module = torch.get_device_module(device)
    seconds = []
    for _ in range(4):
        module.synchronize()
        began = time.perf_counter()
        a @ a
        module.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
