"""Does a difference hold at scale? It holds, grows, shrinks or crosses zero, or that can't be told from these runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from minllm.estimates import Estimate
from minllm.page import units
from minllm.study.scaling.trend import draw

Floats = NDArray[np.float64]
Word = Literal["holds", "grows", "shrinks", "crosses", "unknown"]

AHEAD = (4, 16)
"""How far beyond the largest size the difference is predicted."""
ONE_SIDED = 0.975
"""The probability from which a statement is made; both ends of a 95 % interval."""
SAME = 1.25
"""Up to this factor a relative difference is the same, even if it is certain to change."""
SIMILAR = 2.0
"""Up to this factor it holds unless it is certain to change."""
PATH = 40
"""Sizes between the smallest rung and the farthest prediction at which a crossing is looked for."""


@dataclass(frozen=True)
class Rung:
    """A size at which both arms were trained.

    size: parameters, or FLOPs; the mean of both arms
    baseline, arm: losses in bits per byte, paired by seed
    """

    size: float
    baseline: Sequence[float]
    arm: Sequence[float]

    @property
    def differences(self) -> list[float]:
        return [b - a for a, b in zip(self.baseline, self.arm)]


@dataclass(frozen=True)
class Prediction:
    """The difference that `pairs` pairs of seeds will show at a size, with a 95 % prediction interval."""

    size: float
    factor: float
    pairs: int
    difference: Estimate


@dataclass(frozen=True)
class Answer:
    """What becomes of a difference at scale.

    word: the answer
    rungs: as measured
    fitted: the expected difference at each, from the lines through all of them
    change: the factor by which the relative difference of the reducible losses changes with each doubling of the size
    speed_up: how many times the size the baseline needs at the largest rung for the arm's loss, by its law
    predictions: beyond the largest rung
    path: sizes from the smallest rung to the farthest prediction, and the expected difference at each
    crossing: the size at which the sign changes; None if it isn't certain that it does
    sentence: the answer and why
    """

    word: Word
    rungs: Sequence[Rung]
    fitted: Sequence[Estimate]
    change: Estimate
    speed_up: Estimate
    predictions: Sequence[Prediction]
    path: Sequence[tuple[float, Estimate]]
    crossing: Estimate | None
    sentence: str


def answer(rungs: Sequence[Rung], *, floor: float | None, seed: int = 0) -> Answer:
    """Return what becomes of a difference at scale.

    Args:
        rungs: from the smallest to the largest; at least three, with four pairs in all.
        floor: the corpus entropy in bits per byte, if it is known.

    Raises:
        ValueError: there are too few rungs or pairs, or a loss is at or below the floor.
    """
    sizes = [rung.size for rung in rungs]
    ahead = [sizes[-1] * factor for factor in AHEAD]
    path = np.geomspace(sizes[0], ahead[-1], PATH)
    draws = draw(
        sizes,
        [rung.baseline for rung in rungs],
        [rung.arm for rung in rungs],
        [*sizes, *ahead, *path],
        floor=floor,
        seed=seed,
    )
    R, ratio, differences = len(rungs), draws.ratio, draws.differences
    pairs = min(len(rung.arm) for rung in rungs)
    measured = draws.measured(pairs, np.random.default_rng(seed))
    doublings = math.log2(sizes[-1] / sizes[0])
    change = np.exp2(np.log2(np.abs(ratio[:, R - 1] / ratio[:, 0])) / doublings)
    falling = np.where(draws.slope < 0, -draws.slope, np.nan)
    with np.errstate(over="ignore"):  # infinite where the baseline hardly improves with size
        speed_up = np.exp(-ratio[:, R - 1] / falling)
    crossing = _crossing(path, ratio[:, R + len(ahead) :])
    word = _word(ratio[:, 0], ratio[:, R - 1], ratio[:, R + len(ahead) - 1])
    predictions = [
        Prediction(size, factor, pairs, _estimate(measured[:, R + at]))
        for at, (size, factor) in enumerate(zip(ahead, AHEAD))
    ]
    where = _estimate(crossing) if word == "crosses" else None
    return Answer(
        word=word,
        rungs=rungs,
        fitted=[_estimate(differences[:, at]) for at in range(R)],
        change=_estimate(change),
        speed_up=_estimate(speed_up),
        predictions=predictions,
        path=[(float(size), _estimate(differences[:, R + len(ahead) + at])) for at, size in enumerate(path)],
        crossing=where,
        sentence=_sentence(word, ratio, R, predictions, where),
    )


def predicted(rungs: Sequence[Rung], size: float, pairs: int, *, floor: float | None) -> Prediction:
    """Return the difference that so many pairs will show at a size; arguments and errors are those of `answer`."""
    sizes = [rung.size for rung in rungs]
    sides = [rung.baseline for rung in rungs], [rung.arm for rung in rungs]
    draws = draw(sizes, *sides, [size], floor=floor)
    measured = draws.measured(pairs, np.random.default_rng(0))
    return Prediction(size, size / sizes[-1], pairs, _estimate(measured[:, 0]))


def _word(smallest: Floats, largest: Floats, farthest: Floats) -> Word:
    """Return the answer from draws of the relative difference at three sizes."""
    sign = _certain_sign(largest)
    if _certain_sign(farthest) * (sign or _certain_sign(smallest)) < 0 or sign * _certain_sign(smallest) < 0:
        return "crosses"
    if not sign or _certain_sign(farthest) != sign:
        return "unknown"
    low, high = np.quantile(farthest / largest, (1 - ONE_SIDED, ONE_SIDED))
    if low >= 1 / SAME and high <= SAME:
        return "holds"
    if low > 1:
        return "grows"
    if high < 1:
        return "shrinks"
    return "holds" if low >= 1 / SIMILAR and high <= SIMILAR else "unknown"


def _certain_sign(values: Floats) -> int:
    """Return −1 or 1 if the sign is certain enough, else 0."""
    below = float((values < 0).mean())
    return -1 if below >= ONE_SIDED else 1 if below <= 1 - ONE_SIDED else 0


def _crossing(path: Floats, ratio_DP: Floats) -> Floats:
    """Return the first size along the path at which each draw changes its sign; NaN where it doesn't."""
    changes = np.diff(np.sign(ratio_DP), axis=1) != 0
    first = changes.argmax(axis=1)
    rows = np.arange(len(ratio_DP))
    before, after = ratio_DP[rows, first], ratio_DP[rows, first + 1]
    share = np.divide(before, before - after, out=np.zeros_like(before), where=before * after < 0)
    sizes = np.exp(np.log(path[first]) + share * np.log(path[first + 1] / path[first]))
    return np.where(changes.any(axis=1), sizes, np.nan)


def _estimate(values: Floats) -> Estimate:
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2:
        return Estimate(math.nan, (-math.inf, math.inf))
    low, middle, high = np.quantile(known, (1 - ONE_SIDED, 0.5, ONE_SIDED))
    return Estimate(float(middle), (float(low), float(high)))


def _sentence(
    word: Word, ratio: Floats, R: int, predictions: Sequence[Prediction], crossing: Estimate | None
) -> str:
    far = predictions[-1]
    low, high = far.difference.interval
    said = (
        f"At {far.factor:g} times the largest size ({units.count(far.size)}), the predicted difference is"
        f" {far.difference.value:+.4f} bits per byte (95 % prediction interval {low:+.4f} to {high:+.4f})."
    )
    if word == "crosses":
        assert crossing is not None
        near, away = crossing.interval
        return (
            f"The difference changes its sign at about {units.count(crossing.value)}"
            f" ({units.count(near)} to {units.count(away)}). {said}"
        )
    if word == "unknown":
        if not _certain_sign(ratio[:, R - 1]):
            return (
                f"At the largest size, no difference is established, so that none can be extrapolated. {said}"
            )
        if not _certain_sign(ratio[:, R + len(AHEAD) - 1]):
            return f"The sign of the difference beyond the largest size can't be told from these runs. {said}"
        return f"The sign stays, but whether the difference grows or shrinks can't be told from these runs. {said}"
    verb = {"holds": "holds", "grows": "grows", "shrinks": "shrinks but stays"}[word]
    return f"Relative to what can still be learnt, the difference {verb}. {said}"
