"""How many pairs would settle a contest that is inconclusive."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from scipy.special import nctdtr, ndtr, stdtrit

POWER = 0.8
MOST_PAIRS = 1_000


@dataclass(frozen=True)
class Guess:
    """The assumed distribution of further pairs, and what the tests need.

    pairs, mean, sd: of the differences so far
    margin: the largest difference that doesn't matter
    level, equivalence_level: the p-values that the last look needs, two-sided and one-sided
    least: with fewer pairs, nothing can be claimed
    difference, equivalence: whether these could be proved at all
    """

    pairs: int
    mean: float
    sd: float
    margin: float
    level: float
    equivalence_level: float
    least: int
    difference: bool = True
    equivalence: bool = True


def pairs_to_settle(guess: Guess) -> int | None:
    """Return how many pairs give a power of 0.8, assuming that the mean and the standard deviation stay the same.

    None if they are more than 1,000, or if there are fewer than two pairs to estimate it from.
    """
    if guess.pairs < 2:
        return None
    choices = range(max(guess.least, guess.pairs + 1), MOST_PAIRS + 1)
    # neither decreases as pairs are added
    powers = [power_of_difference] * guess.difference + [power_of_equivalence] * guess.equivalence
    first = bisect_left(choices, POWER, key=lambda pairs: max(power(guess, pairs) for power in powers))
    return choices[first] if first < len(choices) else None


def power_of_difference(guess: Guess, pairs: int) -> float:
    """Return the probability that both tests detect the difference.

    The correction for skewness and the sign-flip test need about two pairs more than Student's t. With the fewest
    pairs all differences must have the same sign, whose probability is known.
    """
    power = power_of_t(abs(guess.mean), guess.sd, pairs - 2, guess.level / 2)
    same_sign = float(ndtr(abs(guess.mean) / guess.sd)) ** pairs
    return power if 4 / 2**pairs <= guess.level else min(power, same_sign)


def power_of_equivalence(guess: Guess, pairs: int) -> float:
    """Return a lower bound on the probability that both one-sided tests succeed: the sum of the two minus one."""
    near, far = guess.margin - abs(guess.mean), guess.margin + abs(guess.mean)
    powers = (power_of_t(distance, guess.sd, pairs, guess.equivalence_level) for distance in (near, far))
    return sum(powers) - 1


def power_of_t(distance: float, sd: float, pairs: int, level: float) -> float:
    """Return the power of a one-sided t test whose true mean is this far from the tested value."""
    shift = min(max(distance / sd * math.sqrt(pairs), 0.0), 30.0)  # outside, nctdtr may return nan
    return 1 - float(nctdtr(pairs - 1, shift, stdtrit(pairs - 1, 1 - level)))
