"""Learning curves of single runs, and their values between evaluations.

Between two evaluations, the bits per byte are interpolated linearly in the logarithm of the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minllm.study.selection import TrainedRun


@dataclass(frozen=True)
class Points:
    """A run's evaluations in order: what had been spent by then, and the bits per byte."""

    tokens: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    bpb: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def points_of(run: TrainedRun) -> Points:
    """Return a run's finite evaluations, in the order of their tokens."""
    rows = [(event["tokens"], event["seconds"], event["val_bpb"]) for event in run.evaluations]
    whole = [row for row in rows if all(value is not None and math.isfinite(value) for value in row)]
    tokens, seconds, bpb = np.array(sorted(whole), dtype=float).reshape(-1, 3).T
    return Points(tokens, tokens * run.summary["flops_per_token"], seconds, bpb)


def common_budgets(all_budgets: Sequence[np.ndarray]) -> np.ndarray:
    """Return budgets that every run covers: the runs' own if they agree, or else evenly spaced ones."""
    if all(np.array_equal(budgets, all_budgets[0]) for budgets in all_budgets):
        return all_budgets[0]
    begin, end = max(budgets[0] for budgets in all_budgets), min(budgets[-1] for budgets in all_budgets)
    if begin >= end:  # for example, a single evaluation each, at the end
        return np.array([np.mean([budgets[-1] for budgets in all_budgets])])
    return np.linspace(begin, end, max(2, min(map(len, all_budgets))))


def bpb_at(budget: float | np.ndarray, budgets: np.ndarray, bpb: np.ndarray) -> np.ndarray:
    """Return a curve's interpolated bits per byte at one budget or at several."""
    return np.interp(np.log(budget), np.log(budgets), bpb)


def log_budgets_to_reach(budgets: np.ndarray, curves: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the logarithm of the budget at which each curve first is at or below its target.

    It is +∞ for a curve that never is, and −∞ for one that is below it at its first point already.

    Args:
        budgets: (P,), the budgets of the curves' points.
        curves: (K, P).
        targets: (K,).
    """
    logs = np.log(budgets)
    is_below = curves <= targets[:, None]
    first = is_below.argmax(1)
    after = np.take_along_axis(curves, first[:, None], 1)[:, 0]
    before = np.take_along_axis(curves, np.maximum(first - 1, 0)[:, None], 1)[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (before - targets) / (before - after)
        between = logs[np.maximum(first - 1, 0)] + share * (logs[first] - logs[np.maximum(first - 1, 0)])
    at_first = np.where(after == targets, logs[0], -np.inf)
    return np.where(is_below.any(1), np.where(first == 0, at_first, between), np.inf)
