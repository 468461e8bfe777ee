"""Learning curves: an arm's validation loss during training, over all its seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minllm.study.arms import Arm
from minllm.study.curves import common_budgets, points_of


@dataclass(frozen=True)
class Curve:
    """Bits per byte at some points of training: mean, lowest and highest over the seeds.

    tokens, flops, seconds: the points' positions on each axis
    """

    arm: str
    seeds: int
    tokens: list[float]
    flops: list[float]
    seconds: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def curve(arm: Arm) -> Curve:
    """Return an arm's curve, which has no points if none of its runs was evaluated.

    If the runs were evaluated at different points, as with a budget in minutes, each is interpolated linearly between
    its evaluations.
    """
    followed = [points for points in map(points_of, arm.runs.values()) if len(points)]
    if not followed:
        return Curve(arm.name, 0, [], [], [], [], [], [])
    tokens = common_budgets([points.tokens for points in followed])
    seconds, values = (
        np.array([np.interp(tokens, points.tokens, getattr(points, name)) for points in followed])
        for name in ("seconds", "bpb")
    )
    return Curve(
        arm.name,
        len(followed),
        tokens.tolist(),
        (tokens * arm.first.summary["flops_per_token"]).tolist(),
        seconds.mean(0).tolist(),
        values.mean(0).tolist(),
        values.min(0).tolist(),
        values.max(0).tolist(),
    )


def at_quarters(curve: Curve) -> list[float | None]:
    """Return the mean at each quarter of training; None before the first evaluation."""
    if not curve.tokens:
        return [None] * 4
    quarters = [curve.tokens[-1] * share for share in (0.25, 0.5, 0.75, 1.0)]
    return [
        float(np.interp(tokens, curve.tokens, curve.mean)) if tokens >= curve.tokens[0] else None
        for tokens in quarters
    ]
