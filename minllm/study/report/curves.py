"""Learning curves: an arm's validation loss during training, over all its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minllm.page.units import finite
from minllm.study.arms import Arm
from minllm.study.comparison import METRIC
from minllm.study.selection import TrainedRun


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
    followed = [lines for lines in map(_evaluated, arm.runs.values()) if len(lines)]
    if not followed:
        return Curve(arm.name, 0, [], [], [], [], [], [])
    points = _common([lines[:, 0] for lines in followed])
    seconds, values = (
        np.array([np.interp(points, lines[:, 0], lines[:, column]) for lines in followed])
        for column in (1, 2)
    )
    return Curve(
        arm.name,
        len(followed),
        points.tolist(),
        (points * arm.first.summary["flops_per_token"]).tolist(),
        seconds.mean(0).tolist(),
        values.mean(0).tolist(),
        values.min(0).tolist(),
        values.max(0).tolist(),
    )


def at_quarters(one: Curve) -> list[float | None]:
    """Return the mean at each quarter of training; None before the first evaluation."""
    if not one.tokens:
        return [None] * 4
    quarters = [one.tokens[-1] * share for share in (0.25, 0.5, 0.75, 1.0)]
    return [
        float(np.interp(tokens, one.tokens, one.mean)) if tokens >= one.tokens[0] else None
        for tokens in quarters
    ]


def floor_of(arms: Sequence[Arm]) -> float | None:
    """Return the corpus's entropy in bits per byte, which no model can go below, if it is known."""
    known = [finite(value) for arm in arms for value in arm.values("floor_bpb")]
    return next((value for value in known if value is not None), None)


def _evaluated(run: TrainedRun) -> np.ndarray:
    """Return a run's finite evaluations as rows of tokens, seconds and bits per byte."""
    rows = [(event["tokens"], event["seconds"], event[METRIC]) for event in run.evaluations]
    return np.array(
        [row for row in rows if all(finite(value) is not None for value in row)], dtype=float
    ).reshape(-1, 3)


def _common(tokens: Sequence[np.ndarray]) -> np.ndarray:
    """Return points that every run covers: the runs' common points if they agree, or else evenly spaced ones."""
    if all(np.array_equal(one, tokens[0]) for one in tokens):
        return tokens[0]
    begin, end = max(one[0] for one in tokens), min(one[-1] for one in tokens)
    if begin >= end:  # for example, a single evaluation each, at the end
        return np.array([np.mean([one[-1] for one in tokens])])
    return np.linspace(begin, end, max(2, min(map(len, tokens))))
