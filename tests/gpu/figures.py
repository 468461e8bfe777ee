"""Comparisons whose failures print how far apart two results are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def distance(one: Tensor, other: Tensor, least: float = 1e-30) -> float:
    """Return the largest difference, relative to the largest number of `other`, or to `least` if that is larger."""
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    assert one.shape == other.shape, f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
    assert one.isfinite().all(), (
        f"{int((~one.isfinite()).sum())} of {one.numel()} numbers are NaN or infinite"
    )
    return float((one - other).abs().max() / other.abs().max().clamp(min=least)) if one.numel() else 0.0


def assert_near(
    ours: Mapping[str, Tensor], reference: Mapping[str, Tensor], tolerance: float, least: float = 0.0
) -> None:
    """Assert that each result is near its reference; the failure lists the worst ones.

    Args:
        least: the smallest number that differences are relative to, as a fraction of the largest of all results: a
            gradient that is zero but for rounding differs from itself.
    """
    assert ours.keys() == reference.keys()
    largest = max((float(x.detach().abs().max()) for x in reference.values() if x.numel()), default=0.0)
    least = max(1e-30, least * largest)
    distances = {name: distance(ours[name], reference[name], least) for name in reference}
    worst = sorted(distances, key=distances.get, reverse=True)[:8]
    far = "\n".join(f"  {distances[name]:.3g}  {name} {tuple(reference[name].shape)}" for name in worst)
    assert distances[worst[0]] <= tolerance, f"relative to the largest number, allowed {tolerance:g}:\n{far}"


def assert_same_direction(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor], cosine: float) -> None:
    """Assert that all tensors together have about the same direction."""
    one, other = (
        torch.cat([x.detach().double().cpu().flatten() for x in tensors.values()])
        for tensors in (ours, {name: reference[name] for name in ours})
    )
    assert one.isfinite().all(), "a number is NaN or infinite"
    measured = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    assert measured >= cosine, (
        f"cosine {measured:.4f}, at least {cosine}; norms {one.norm():.4g}, {other.norm():.4g}"
    )
