"""`TRITON_INTERPRET=1 python -m tests.interpreted`: the Triton kernels on a CPU, against plain torch.

A process of its own, because Triton decides on its import whether kernels are interpreted. Prints one line for each
comparison that fails, and then how many were made.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from minllm.model.kernels import cross_entropy as cross_entropy_kernel
from minllm.model.kernels import scan as scan_kernels
from minllm.model.kernels import selective as selective_kernels
from minllm.model.scans import linear, selective
from minllm.objective.cross_entropy_gpu import fused_cross_entropy, plain_cross_entropy

B, D, N = 2, 3, 2


def compare(
    name: str, ours: tuple[Tensor, ...], reference: tuple[Tensor, ...], tolerance: float = 1e-5
) -> None:
    for i, (one, other) in enumerate(zip(ours, reference, strict=True)):
        same_kind = one.shape == other.shape and one.dtype == other.dtype
        apart = float((one - other).abs().max() / other.abs().max().clamp(min=1)) if same_kind else torch.inf
        if not apart < tolerance:
            print(f"{name}: result {i} is off by {apart:.3g}")


def linear_scans() -> int:
    kinds, lengths = (torch.float32, torch.complex64), (1, 34)
    factors = ((D, N), (D, 1), (1, 1), (1, N))
    cases = list(itertools.product(kinds, lengths, factors, (False, True)))
    for kind, T, factor, has_state in cases:
        a, b = torch.rand(B, T, *factor, dtype=kind) * 0.9, torch.randn(B, T, D, N, dtype=kind)
        h0 = torch.randn(B, D, N, dtype=kind) if has_state else None
        dh, h = torch.randn_like(b), linear._linear_scan(a, b, h0, False)
        ours = (scan_kernels.scan(a, b, h0), *scan_kernels.scan_backward(dh, a, h, h0))
        reference = (h, *linear._linear_scan_backward(dh, a, h, h0, False))
        compare(f"linear {kind} {T} {factor} {has_state}", ours, reference)
    return len(cases)


def selective_scans() -> int:
    cases = list(itertools.product((1, 19), (False, True)))
    for T, all_of_it in cases:
        u, dt, A = torch.randn(B, T, D), torch.rand(B, T, D), -2 * torch.rand(D, N)
        write, read = torch.randn(B, T, N), torch.randn(B, T, N)
        h0, keep = (torch.randn(B, D, N), torch.rand(B, T) > 0.2) if all_of_it else (None, None)
        inputs, L = (u, dt, A, write, read), selective.CHUNK
        y, h = selective._selective_scan(*inputs, h0, keep)
        dy, dlast = torch.randn_like(y), torch.randn(B, D, N)
        back = (dy, dlast, *inputs, h, keep)
        ours = selective_kernels.selective_forward(*inputs, h0, keep, L)
        ours += selective_kernels.selective_backward(*back, L)
        compare(f"selective {T} {all_of_it}", ours, (y, h, *selective._selective_scan_backward(*back)))
    return len(cases)


def cross_entropies() -> int:
    """In several blocks of columns, the last one shorter, with padding, ties and rows that don't count."""
    cross_entropy_kernel.COLUMNS = 32
    options = (None, 2.0), (0.0, 0.1), (False, True), (False, True)
    cases = list(itertools.product((torch.float32, torch.bfloat16, torch.float16), *options))
    for dtype, *case in cases:
        C, V, P = 40, 75, 80
        # rounded, so that several tokens are the most probable ones
        logits = torch.randn(C + 1, P).mul(3).round().to(dtype)
        targets, factor = logits[:C, :V].argmax(1), torch.rand(C)
        targets[::2] = torch.randint(V, (C // 2,))
        targets[::5], factor[::5] = -100, 0
        logits[:C:10], logits[5:C:10, 0] = torch.nan, 9
        logits[1] -= 200  # whose exponentials are 0
        logits[2, :40], targets[2] = -torch.inf, 60  # all of the first block
        results = []
        for compute in (fused_cross_entropy, plain_cross_entropy):
            # the kernel must leave alone the row that follows
            ours = logits.clone()
            losses, right = compute(ours[:C], targets, factor, V, *case)
            ours = ours.float().nan_to_num(7, neginf=-9)
            results.append((losses, ours, *([right.float()] if case[-1] else [])))
        rounding = {torch.float32: 1e-5, torch.bfloat16: 1 / 256, torch.float16: 1 / 2048}[dtype]
        compare(f"cross-entropy {dtype} {case}", *results, tolerance=rounding)
    return len(cases)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(f"compared: {linear_scans() + selective_scans() + cross_entropies()}")
