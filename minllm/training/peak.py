"""The largest number of floating-point operations per second of a GPU's matrix products."""

from __future__ import annotations

import time

import torch

PEAKS: dict[str, tuple[float, float, float]] = {
    "GB200": (2500e12, 1250e12, 80e12),
    "B200": (2250e12, 1125e12, 75e12),
    "H200": (989.4e12, 494.7e12, 66.9e12),
    "GH200": (989.4e12, 494.7e12, 66.9e12),
    "H100 PCIe": (756e12, 378e12, 51.2e12),
    "H100 NVL": (835e12, 417.5e12, 60e12),
    "H100": (989.4e12, 494.7e12, 66.9e12),
    "A100": (312e12, 156e12, 19.5e12),
    "A40": (149.7e12, 74.8e12, 37.4e12),
    "A10": (125e12, 62.5e12, 31.2e12),
    "L40S": (362e12, 183e12, 91.6e12),
    "L4": (121e12, 60e12, 30.3e12),
    "RTX 5090": (209.5e12, 104.8e12, 104.8e12),
    "RTX 4090": (165.2e12, 82.6e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12, 35.6e12),
    "RTX A6000": (154.8e12, 77.4e12, 38.7e12),
    "MI300X": (1307.4e12, 653.7e12, 163.4e12),
}
"""FLOP/s of dense products in bf16 (sums in fp32), TF32 and fp32, by a part of the device's name.

The figures are those of the makers' data sheets, which assume the boost clock: NVIDIA's for each card (half of the
figures with sparsity), its architecture white papers (Ada, Ampere, Blackwell) for RTX cards, and AMD's for Instinct.
Names are tried from the longest to the shortest.
"""

SIZE, TIMES = 8192, 4
"""The matrices that are multiplied on a device that isn't in the table, and how often."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak of a GPU by the table; None if it isn't in there. fp32 is TF32 where torch may use it."""
    if device.type != "cuda":
        return None
    device_name = torch.cuda.get_device_name(device)
    name = next((name for name in sorted(PEAKS, key=len, reverse=True) if name in device_name), None)
    if name is None:
        return None
    bf16, tf32, fp32 = PEAKS[name]
    if precision == "bf16":
        return bf16
    return fp32 if torch.get_float32_matmul_precision() == "highest" else tf32


def measured_flops(device: torch.device, precision: str, size: int = SIZE) -> float:
    """Return the FLOP/s of a large matrix product of random numbers on a device, measured now."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    synchronize = torch.get_device_module(device).synchronize
    torch.mm(a, b)
    synchronize()
    begun = time.perf_counter()
    for _ in range(TIMES):
        torch.mm(a, b)
    synchronize()
    return 2 * size**3 * TIMES / (time.perf_counter() - begun)
