"""How the difference between two arms depends on scale, and what it will be beyond the largest size.

Both arms are trained at several sizes with the same seeds. What a size can still improve is the reducible loss L − E;
in logarithms a power law is a straight line,

    log(L_baseline − E) = a line in log N                 the baseline's law
    log(L_arm − E) − log(L_baseline − E) = a line in log N        the ratio of the two, from paired seeds

and where the law doesn't hold, the lines bend. How much they bend, how large the noise is, and E where it isn't known,
are averaged over: every combination on a grid counts as much as it explains the losses (Hoeting et al., 1999), so that
a prediction is as uncertain as the laws that the runs allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Floats = NDArray[np.float64]

BENDS = (0.0, 0.003, 0.01, 0.03, 0.1)
"""Standard deviations of the bend: the coefficient of (log N)² in log L."""
STRAIGHT = 0.05
"""The prior probability that a line doesn't bend."""
NOISES = 25
"""Noise levels on the grid, from a tenth to ten times the spread of the seeds."""
FLOORS = 24
"""Values of an unknown E on the grid, from 0 to almost the smallest loss."""
DRAWS = 20_000


@dataclass(frozen=True)
class Draws:
    """Draws from the distribution of both lines, given the runs.

    baseline, ratio: (draws, sizes), log(L_baseline − E), and log(L_arm − E) less that
    slope: (draws,), of the baseline's line at the largest size: −α
    floor: (draws,), E
    baseline_noise, ratio_noise: (draws,), standard deviations between seeds
    """

    baseline: Floats
    ratio: Floats
    slope: Floats
    floor: Floats
    baseline_noise: Floats
    ratio_noise: Floats

    @property
    def differences(self) -> Floats:
        """The difference of the expected losses, arm minus baseline, at each size: (draws, sizes)."""
        return np.exp(self.baseline) * np.expm1(self.ratio)

    def measured(self, pairs: int, generator: np.random.Generator) -> Floats:
        """Return differences as they will be measured at each size with so many pairs of seeds: (draws, sizes)."""
        noise = generator.standard_normal((2, *self.ratio.shape)) / math.sqrt(pairs)
        baseline = self.baseline + self.baseline_noise[:, None] * noise[0]
        return np.exp(baseline) * np.expm1(self.ratio + self.ratio_noise[:, None] * noise[1])


def draw(
    sizes: Sequence[float],
    baseline: Sequence[Sequence[float]],
    arm: Sequence[Sequence[float]],
    at: Sequence[float],
    *,
    floor: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Draws:
    """Return draws of both arms' lines at some sizes, given the losses of their runs.

    Args:
        sizes: of the rungs: parameters, or FLOPs.
        baseline, arm: for each rung, the losses by seed; the seeds of both are paired.
        at: the sizes to predict; the last is where the slope is taken if it is the largest rung.
        floor: E if it is known, below every loss.

    Raises:
        ValueError: there are fewer than three rungs or four pairs, or a loss isn't above the known floor.
    """
    if len(set(sizes)) < 3 or sum(map(len, baseline)) < 4:
        raise ValueError("a trend needs three sizes and four pairs or more")
    x_R = np.repeat(np.log(sizes), [len(losses) for losses in baseline])
    losses_2R = np.array([[loss for rung in side for loss in rung] for side in (baseline, arm)])
    least = float(losses_2R.min())
    if floor is not None and least <= floor:
        raise ValueError("a loss is at or below the known floor")
    floors = [floor] if floor is not None else list(least * (1 - np.geomspace(1, 1e-3, FLOORS)))
    top = math.log(max(sizes))
    points = np.concatenate([np.log(at), [top + 0.05, top - 0.05]])
    lines, weights = [], []
    for value in floors:
        logs_2R = np.log(losses_2R - value)
        pair = _Line(x_R, logs_2R[0], points), _Line(x_R, logs_2R[1] - logs_2R[0], points)
        lines.append(pair)
        # The density of a loss is that of its logarithm, divided by its distance from the floor. The prior is flat in
        # the expected losses at the ends of the rungs; flat in the lines themselves, whose slopes grow without limit
        # as the floor nears the losses, it would favour high floors.
        ends = sum(logs_2R[:, x_R == end].mean(1).sum() for end in (x_R.min(), x_R.max()))
        weights.append(sum(logsumexp(line.weights) for line in pair) - logs_2R.sum() + ends)
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(floors), draws, p=_normalised(np.array(weights)))
    baseline_D, ratio_D = np.empty((draws, len(points))), np.empty((draws, len(points)))
    noises_2D = np.empty((2, draws))
    for index in np.unique(chosen):
        rows = np.flatnonzero(chosen == index)
        for side, (line, values) in enumerate(zip(lines[index], (baseline_D, ratio_D))):
            values[rows], noises_2D[side, rows] = line.draw(len(rows), generator)
    slope = (baseline_D[:, -2] - baseline_D[:, -1]) / 0.1
    return Draws(
        baseline_D[:, :-2], ratio_D[:, :-2], slope, np.array(floors)[chosen], noises_2D[0], noises_2D[1]
    )


class _Line:
    """A straight or bent line through noisy values, on a grid of bends and noise levels.

    For each of them this is universal kriging: a line with a flat prior, whose bend is a Gaussian process.
    """

    def __init__(self, x_R: Floats, y_R: Floats, points_P: Floats):
        centre = x_R.max()
        design_R2, design_P2 = _design(x_R - centre), _design(points_P - centre)
        bend_R, bend_P = _bend(x_R, x_R), _bend(points_P, x_R)
        spread = _spread(x_R, y_R)
        self.noises = spread * np.geomspace(0.1, 10, NOISES)
        grid = [(noise, bend) for bend in BENDS for noise in self.noises]
        self.noise_G = np.array([noise for noise, _ in grid])
        bend_G = np.array([bend for _, bend in grid])
        prior_G = np.where(bend_G == 0, STRAIGHT, (1 - STRAIGHT) / (len(BENDS) - 1))
        R, square = len(x_R), float(bend_R @ bend_R)
        noise_G1, variance_G = self.noise_G[:, None], bend_G**2
        # The covariance of the values is noise² I + variance b bᵀ; its inverse is (I − lost b bᵀ) / noise².
        lost_G = variance_G / (self.noise_G**2 + variance_G * square)
        along_2 = bend_R @ design_R2
        weighted_G2R = (design_R2.T - lost_G[:, None, None] * np.outer(along_2, bend_R)) / noise_G1[
            :, None
        ] ** 2
        information_G22 = weighted_G2R @ design_R2
        self.scatter_G22 = np.linalg.inv(information_G22)
        line_G2 = (self.scatter_G22 @ (weighted_G2R @ y_R)[..., None])[..., 0]
        rest_GR = y_R - line_G2 @ design_R2.T
        bent_G = rest_GR @ bend_R
        # restricted likelihood: of what the line leaves over
        quadratic_G = ((rest_GR**2).sum(1) - lost_G * bent_G**2) / self.noise_G**2
        logdet_G = 2 * R * np.log(self.noise_G) + np.log1p(variance_G * square / self.noise_G**2)
        logdet_G += np.linalg.slogdet(information_G22)[1]
        self.weights = -0.5 * (quadratic_G + logdet_G) + np.log(prior_G / NOISES)
        # the prediction: its mean, how it depends on the error of the line, and what is unknown of the bend
        gain_G = variance_G * (1 - lost_G * square) / self.noise_G**2
        self.mean_GP = line_G2 @ design_P2.T + (gain_G * bent_G)[:, None] * bend_P
        self.apart_GP2 = design_P2 - gain_G[:, None, None] * np.outer(bend_P, along_2)
        unknown_G = variance_G * (1 - gain_G * square)
        self.bend_GP = np.sqrt(np.clip(unknown_G, 0, None))[:, None] * bend_P

    def draw(self, number: int, generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Return so many draws of the line at the points, and the noise level of each."""
        index_D = generator.choice(len(self.weights), number, p=_normalised(self.weights))
        roots_G22 = np.linalg.cholesky(self.scatter_G22)
        line_D2 = (roots_G22[index_D] @ generator.standard_normal((number, 2, 1)))[..., 0]
        values_DP = self.mean_GP[index_D] + (self.apart_GP2[index_D] @ line_D2[..., None])[..., 0]
        values_DP += self.bend_GP[index_D] * generator.standard_normal((number, 1))
        return values_DP, self.noise_G[index_D]


def _design(x: Floats) -> Floats:
    return np.stack([np.ones_like(x), x], axis=1)


def _bend(x: Floats, rungs: Floats) -> Floats:
    """The parabola that is zero at the ends of the rungs, so that it is no line in disguise."""
    return (x - rungs.min()) * (x - rungs.max())


def _spread(x_R: Floats, y_R: Floats) -> float:
    """Return about how much seeds differ, with which noise levels are scaled: within rungs if they have several."""
    rungs, inverse = np.unique(x_R, return_inverse=True)
    free = len(x_R) - len(rungs)
    if free >= 2:
        rest = y_R - (np.bincount(inverse, y_R) / np.bincount(inverse))[inverse]
    else:
        design = _design(x_R - x_R.mean())
        rest, free = y_R - design @ np.linalg.lstsq(design, y_R, rcond=None)[0], len(x_R) - 2
    return max(math.sqrt(float(rest @ rest) / free), 1e-9)


def _normalised(log_weights: Floats) -> Floats:
    return np.exp(log_weights - logsumexp(log_weights))
