"""How much faster an arm learns than the baseline: the tokens that both need for the same loss, and equal budgets.

A learning rate that falls to zero at the end of training makes a run's last evaluation better than what the same curve
says of a shorter run, so that intermediate points are pessimistic: an arm that reaches a loss halfway would have
reached it sooner in a run planned to end there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from minllm.estimates import Estimate
from minllm.study.arms import Arm
from minllm.study.curves import Points, bpb_at, common_budgets, log_budgets_to_reach, points_of
from minllm.study.intervals import mean_of, percentile_interval, resamples

Bound = Literal["", "at least", "at most"]
AXES = ("tokens", "flops", "seconds")

FITTED = 0.5  # the part of a curve, up to its end, to which a power law is fitted
LEAST_FITTED = 3  # points


@dataclass(frozen=True)
class SpeedUp:
    """A ratio of tokens, above 1 if the arm is faster.

    value: the ratio, or the bound where a curve doesn't reach the other's loss
    bound: whether the value is a bound
    interval: at 95 %; its upper end is infinite if it lies beyond what was trained, and its lower end is 0 if it lies
        before the first evaluation
    censored: the fraction of resamples in which the curve didn't reach the loss
    """

    value: float
    bound: Bound
    interval: tuple[float, float]
    censored: float


@dataclass(frozen=True)
class SpeedUps:
    """Three views of the speed-up of an arm over the baseline, each on the mean curves over the seeds of the pairs.

    to_arm: tokens that the baseline needs to reach the arm's final loss, divided by the arm's tokens
    to_baseline: the baseline's tokens, divided by those that the arm needs to reach the baseline's final loss
    extrapolated: `to_arm`, where the baseline doesn't reach that loss, by a power law above the corpus's known entropy;
        None if it is reached, the entropy isn't known or the curve isn't one
    exponent: the fitted exponent of that power law
    """

    to_arm: SpeedUp
    to_baseline: SpeedUp
    extrapolated: SpeedUp | None
    exponent: float | None

    @property
    def best_known(self) -> SpeedUp:
        """The view that is shown if only one can be: the first that isn't a bound."""
        return next((view for view in (self.to_arm, self.to_baseline) if not view.bound), self.to_arm)


@dataclass(frozen=True)
class AtEqual:
    """The difference in bits per byte after both arms have spent the same.

    budget: the largest amount that every run of the pairs has spent
    difference: arm minus baseline; None if a run has no evaluation that early
    of_arm, of_baseline: the fraction of its own total that an arm had spent by then, on average
    """

    axis: str
    budget: float
    difference: Estimate | None
    of_arm: float
    of_baseline: float


@dataclass(frozen=True)
class _Pairs:
    """The curves of both arms, in the order of the seeds of the pairs."""

    arm: list[Points]
    baseline: list[Points]


def pairs_of(arm: Arm, baseline: Arm, seeds: Sequence[int]) -> _Pairs | None:
    """Return the curves of the pairs; None if a run has no evaluations."""
    both = _Pairs(*([points_of(side.runs[seed]) for seed in seeds] for side in (arm, baseline)))
    is_known = all(len(points) and points.tokens[0] > 0 for points in (*both.arm, *both.baseline))
    return both if is_known and len(seeds) else None


def speed_ups(pairs: _Pairs, floor: float | None) -> SpeedUps:
    """Return the speed-ups of mean curves, with intervals from a bootstrap over the pairs.

    Args:
        floor: the corpus's entropy in bits per byte, if it is known.
    """
    n = len(pairs.arm)
    weights = np.concatenate([np.full((1, n), 1 / n), resamples(n)])  # the first row is the estimate itself
    arm, baseline = _Means.of(pairs.arm, weights), _Means.of(pairs.baseline, weights)
    to_arm = log_budgets_to_reach(baseline.budgets, baseline.curves, arm.final) - arm.log_tokens
    to_baseline = baseline.log_tokens - log_budgets_to_reach(arm.budgets, arm.curves, baseline.final)
    within = np.log(baseline.budgets[[0, -1]]) - arm.log_tokens[0]
    beyond = baseline.log_tokens[0] - np.log(arm.budgets[[-1, 0]])
    first = _speed_up(to_arm, within, n)
    extrapolated, exponent = None, None
    if floor is not None and first.bound == "at least":
        extrapolated, exponent = _extrapolated(arm, baseline, floor, n)
    return SpeedUps(first, _speed_up(to_baseline, beyond, n), extrapolated, exponent)


@dataclass(frozen=True)
class _Means:
    """An arm's mean curve in each resample.

    budgets: (P,) tokens; curves: (K, P) bits per byte; final: (K,) at the end; log_tokens: (K,) of the whole run
    """

    budgets: np.ndarray
    curves: np.ndarray
    final: np.ndarray
    log_tokens: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[Points], weights: np.ndarray) -> _Means:
        budgets = common_budgets([run.tokens for run in runs])
        curves = weights @ np.array([bpb_at(budgets, run.tokens, run.bpb) for run in runs])
        final = weights @ np.array([run.bpb[-1] for run in runs])
        return cls(budgets, curves, final, weights @ np.log([run.tokens[-1] for run in runs]))


def _speed_up(logs: np.ndarray, within: np.ndarray, n: int) -> SpeedUp:
    """Return a speed-up from its logarithms, the first of which is the estimate.

    Args:
        within: the logarithms of the smallest and the largest ratio that the curves can show.
    """
    low, high = percentile_interval(logs[1:], n)
    # a censored draw is at least as far out as what the curves can show
    ends = min(low, within[1]), max(high, within[0])
    bound: Bound = "" if math.isfinite(logs[0]) else "at least" if logs[0] > 0 else "at most"
    with np.errstate(over="ignore"):
        value, *interval = np.exp([min(max(logs[0], within[0]), within[1]) if bound else logs[0], *ends])
    return SpeedUp(float(value), bound, (float(interval[0]), float(interval[1])), _censored(logs))


def _censored(logs: np.ndarray) -> float:
    return float(np.mean(~np.isfinite(logs[1:])))


def _extrapolated(
    arm: _Means, baseline: _Means, floor: float, n: int
) -> tuple[SpeedUp, float] | tuple[None, None]:
    """Continue the baseline's curve as floor + A · tokens^−α, with α from the later part of the curve."""
    later = baseline.budgets >= FITTED * baseline.budgets[-1]
    if later.sum() < LEAST_FITTED or (baseline.curves <= floor).any() or (arm.final <= floor).any():
        return None, None
    logs = np.log(baseline.budgets[later])
    centred = logs - logs.mean()
    exponents = -np.log(baseline.curves[:, later] - floor) @ centred / (centred @ centred)
    if exponents[0] <= 0:
        return None, None
    gaps = np.log(baseline.final - floor) - np.log(arm.final - floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        further = np.where(exponents > 0, gaps / exponents, np.inf)
    ratios = baseline.log_tokens + further - arm.log_tokens
    return _speed_up(ratios, np.array([-np.inf, np.inf]), n), float(exponents[0])


def at_equal(axis: str, pairs: _Pairs) -> AtEqual:
    """Return the difference at the largest budget that all runs have spent."""
    arm, baseline = ([(getattr(run, axis), run.bpb) for run in runs] for runs in (pairs.arm, pairs.baseline))
    budget = min(budgets[-1] for budgets, _ in (*arm, *baseline))
    used = [
        float(np.mean([budget / budgets[-1] if budgets[-1] else 1.0 for budgets, _ in runs]))
        for runs in (arm, baseline)
    ]
    difference = None
    if all(0 < budgets[0] <= budget for budgets, _ in (*arm, *baseline)):
        difference = mean_of(
            [
                float(bpb_at(budget, *arm_curve) - bpb_at(budget, *baseline_curve))
                for arm_curve, baseline_curve in zip(arm, baseline)
            ]
        )
    return AtEqual(axis, float(budget), difference, *used)
