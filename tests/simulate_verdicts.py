"""How many pairs a verdict takes and how often it is wrong, in simulated studies.

`python -m tests.simulate_verdicts` prints the tables of docs/compare.md, which takes about two minutes of CPU time.
`before` is the procedure that the sequential one replaced: four looks, each at a quarter of the error rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from minllm.study.boundaries import Floats, SignFlips, boundary, skewness, statistic
from minllm.study.futility import FUTILE, chance_to_settle

ALPHA = 0.05
BEFORE = (9, 13, 19, 28)
LOOKS = tuple(range(7, 33))
EFFECTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]

DIFFERENCES: Mapping[str, Draw] = {  # all with mean 0 and standard deviation 1
    "normal": lambda random, shape: random.standard_normal(shape),
    "heavy-tailed (t, 3 df)": lambda random, shape: random.standard_t(3, shape) / np.sqrt(3),
    "of two skewed arms (exponential)": lambda random, shape: (
        (random.exponential(size=shape) - random.exponential(size=shape)) / np.sqrt(2)
    ),
    "skewed (lognormal, skewness 1.75)": lambda random, shape: (
        (random.lognormal(0, 0.5, shape) - np.exp(0.125)) / np.sqrt((np.exp(0.25) - 1) * np.exp(0.25))
    ),
    "skewed (exponential, skewness 2)": lambda random, shape: random.exponential(size=shape) - 1,
}


@dataclass(frozen=True)
class Outcomes:
    """Of each study: the pairs it took, and what it claimed.

    claims: 1 and −1 for a difference of that sign, 2 for equivalence, 0 for none
    """

    pairs: Floats
    claims: Floats

    def share(self, *claims: int) -> float:
        return float(np.isin(self.claims, claims).mean())


def before(studies: Floats, margin: float) -> Outcomes:
    """Judge each study at four looks by Student's t and sign flips, without futility."""
    found = Outcomes(np.full(len(studies), float(BEFORE[-1])), np.zeros(len(studies)))
    going = np.arange(len(studies))
    level = ALPHA / len(BEFORE)
    for pairs in BEFORE:
        seen = studies[going, :pairs]
        mean, error = seen.mean(1), seen.std(1, ddof=1) / np.sqrt(pairs)
        differs = 2 * stdtr(pairs - 1, -abs(mean) / error) <= level
        for i in np.flatnonzero(differs):
            differs[i] = SignFlips(seen[i], [pairs], [pairs]).p_value(0) <= level
        equivalent = stdtr(pairs - 1, (abs(mean) - margin) / error) <= level
        going = _settle(found, going, pairs, np.where(equivalent, 2, np.sign(mean) * differs))
    return found


def after(studies: Floats, margin: float, *, futility: bool = True, looks: Sequence[int] = LOOKS) -> Outcomes:
    """Judge each study by the sequential boundaries, as `verdicts` judges a single contest."""
    found = Outcomes(np.full(len(studies), float(looks[-1])), np.zeros(len(studies)))
    going, random = np.arange(len(studies)), np.random.default_rng(0)
    limits = dict(zip(looks, boundary(tuple(looks), ALPHA, 2)))
    equivalence = dict(zip(looks, boundary(tuple(looks), ALPHA, 1)))
    by_t = np.zeros(len(studies), bool)
    for pairs in looks:
        seen = studies[going, :pairs]
        mean, sd, skew = moments(seen)
        by_t[going] |= 2 * stdtr(pairs - 1, -abs(statistic(pairs, mean, sd, skew))) <= limits[pairs]
        differs = by_t[going]
        for i in np.flatnonzero(differs):
            own = [look for look in looks if look <= pairs]
            differs[i] = any(SignFlips(seen[i], own, looks).rejections(len(own) - 1, ALPHA))
        nearer = np.minimum(
            statistic(pairs, mean, sd, skew, -margin), -statistic(pairs, mean, sd, skew, margin)
        )
        equivalent = stdtr(pairs - 1, -nearer) <= equivalence[pairs]
        going = _settle(found, going, pairs, np.where(equivalent, 2, np.sign(mean) * differs))
        later = [look for look in looks if look > pairs]
        if futility and later and len(going):
            needed = [limits[look] for look in later], [equivalence[look] for look in later]
            chance = np.concatenate(
                [
                    chance_to_settle(part, later, *needed, margin, random)
                    for part in np.array_split(studies[going, :pairs], 1 + len(going) // 250)
                ]
            )
            found.pairs[going[chance < FUTILE]] = pairs
            going = going[chance >= FUTILE]
    return found


def moments(seen: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the mean, the standard deviation and the skewness of each study."""
    pairs, mean = seen.shape[1], seen.mean(1)
    centred = seen - mean[:, None]
    second = (centred**2).mean(1)
    return (
        mean,
        np.sqrt(second * pairs / (pairs - 1)),
        skewness(pairs, second, (centred**3).mean(1)),
    )


def _settle(found: Outcomes, going: np.ndarray, pairs: int, claims: Floats) -> np.ndarray:
    """Write down what was claimed, and return the studies that go on."""
    settled = claims != 0
    found.pairs[going[settled]], found.claims[going[settled]] = pairs, claims[settled]
    return going[~settled]


# ---- the tables ----------------------------------------------------------------------------------


def sample(draw: Draw, effect: float, count: int, seed: int = 0) -> Floats:
    """Return studies of as many pairs as the last look needs."""
    return draw(np.random.default_rng(seed), (count, LOOKS[-1])) + effect


def costs(draw: Draw, margin: float, count: int) -> tuple[list[str], float]:
    """Return a cell for each effect, and the mean pairs over the effects as a share of those before."""
    cells, pairs = [], []
    for effect in EFFECTS:
        studies = sample(draw, effect, count)
        both = before(studies, margin), after(studies, margin)
        true = [1] * (effect > 0) + [2] * (effect < margin)
        old, new = (f"{one.pairs.mean():.1f} ({100 * one.share(*true):.0f} %)" for one in both)
        cells.append(f"{old} → {new}")
        pairs.append([one.pairs.mean() for one in both])
    total = np.sum(pairs, axis=0)
    return cells, total[1] / total[0]


def false_claims(draw: Draw, count: int) -> list[str]:
    """Return how often a difference is claimed where there is none, and equivalence at the margin."""
    nothing = [before(sample(draw, 0, count), 0.01), after(sample(draw, 0, count), 0.01, futility=False)]
    cells = [" → ".join(f"{100 * one.share(1, -1):.1f} %" for one in nothing)]
    for margin in (0.5, 1.0):
        at_it = sample(draw, margin, count // 4), sample(draw, -margin, count // 4)
        shares = [[judge(one, margin).share(2) for one in at_it] for judge in (before, certain)]
        cells.append(" → ".join(f"{100 * max(one):.1f} %" for one in shares))
    return cells


def certain(studies: Floats, margin: float) -> Outcomes:
    return after(studies, margin, futility=False)


def row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main(count: int = 400) -> None:
    row(["differences, margin", *(f"{effect:g} sd" for effect in EFFECTS), "all"])
    row(["---"] * (len(EFFECTS) + 2))
    rows = [(name, 0.1) for name in DIFFERENCES] + [("normal", 0.5), ("normal", 1.0)]
    for name, margin in rows:
        cells, share = costs(DIFFERENCES[name], margin, count)
        row([f"{name}, {margin:g} sd", *cells, f"{share:.2f}"])
    print()
    row(["differences", "no difference", "equivalence, margin 0.5 sd", "equivalence, margin 1 sd"])
    row(["---"] * 4)
    for name, draw in DIFFERENCES.items():
        row([name, *false_claims(draw, 4 * count)])


if __name__ == "__main__":
    main()
