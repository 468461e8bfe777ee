"""Tuning the learning rate on a grid that is extended until the best rate is no longer at its edge.

1. Every planned rate is tried with the first tuning seed.
2. While the best rate is the lowest or the highest tried, the next two beyond it are tried.
3. The best rate and its neighbours are tried with the other tuning seeds, which may make another rate the best.
4. A quadratic in the logarithm of the rate is fitted through the best rate and its neighbours; its minimum is chosen.

A rate counts only if it and every lower rate succeeded with every seed that they were tried with: a rate between rates
that diverged was lucky.

Of rates that are equally good, as accuracies often are, the middle one counts as the best, and no fit is made. A rate
that can't be improved isn't followed past an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minllm.study.tuning import RATE, Tuning
from minllm.verdict.results import (
    Results,
    Round,
    Run,
    Values,
    cannot_be_improved,
    mean_losses,
    missing,
    succeeded,
    tried,
)

SPACING = 2.0
"""The factor between rates if a single one is planned."""
BEYOND = 2
"""How many rates beyond an edge are tried in a round."""
REACH = 2
"""How many neighbours on either side of the best rate the fit uses."""
FAR = 0.25
"""The weight of neighbours that aren't next to the best rate."""


def rates_of(centre: float, multiples: Sequence[float]) -> tuple[float, ...]:
    """Return the learning rates of an arm's grid, in increasing order."""
    return tuple(dict.fromkeys(_rounded(centre * multiple) for multiple in sorted(multiples)))


@dataclass(frozen=True)
class RateSearch:
    """The grid of an arm.

    planned: the rates that are tried in any case
    seeds: the tuning seeds; all rates are tried with the first
    most_runs: the limit on the number of runs
    perfect: the loss that can't be improved
    """

    planned: tuple[float, ...]
    seeds: tuple[int, ...]
    most_runs: int
    perfect: float = 0.0

    @property
    def description(self) -> str:
        return f"{RATE}={', '.join(map(str, self.planned))}, and beyond if the best is at an edge"

    @property
    def planned_values(self) -> Sequence[Values]:
        """The values that are tried regardless of the results."""
        return [_values(rate) for rate in self.planned]

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the range of everything that may be tried."""
        below, above = self._factors()
        low, high = self.planned[0], self.planned[-1]
        steps = self.most_runs - len(self.planned) + 1  # one more, because rates are rounded
        return {RATE: (low / below**steps, high * above**steps)}

    def next_round(self, results: Results) -> Round:
        """Return the next runs; none if the choice is settled or the limit is reached."""
        wanted = self._wanted(results)
        return wanted if len(results) + len(wanted) <= self.most_runs else []

    def choice(self, results: Results) -> Tuning | None:
        """Return the choice; None if no rate succeeded."""
        best = self._best(results)
        if best is None:
            return None
        chosen, how = self._fitted(best, results)
        unsettled = self._unsettled(best, results)
        return Tuning(tried(results, self.planned_values), {RATE: chosen}, how, self.most_runs, unsettled)

    def lowest(self, results: Results) -> Values:
        """Return the lowest rate that was tried."""
        return _values(self._rates(results)[0])

    def _wanted(self, results: Results) -> list[Run]:
        if not results:
            return [(_values(rate), self.seeds[0]) for rate in self.planned]
        rates, best = self._rates(results), self._best(results)
        below, above = self._factors()
        is_open = best is None or not self._is_perfect(best, results)
        if is_open and best in (None, rates[0]):
            return self._beyond(rates[0], 1 / below, len(results))
        if is_open and best == rates[-1]:
            return self._beyond(rates[-1], above, len(results))
        near = self._near(best, results, 1)
        return [run for rate in near for run in missing(_values(rate), results, self.seeds)]

    def _beyond(self, rate: float, factor: float, runs: int) -> list[Run]:
        """Return the runs beyond an edge: two at once, because one by one would leave processors without work."""
        rates = [rate]
        for _ in range(min(BEYOND, self.most_runs - runs)):
            rates.append(_rounded(rates[-1] * factor))
        return [(_values(rate), self.seeds[0]) for rate in rates[1:]]

    def _unsettled(self, best: float, results: Results) -> str:
        rates, is_perfect = self._rates(results), self._is_perfect(best, results)
        runs = f"after {len(results)} runs of at most {self.most_runs} (search.tuning_runs)"
        if best in (rates[0], rates[-1]) and not is_perfect:
            end = "lowest" if best == rates[0] else "highest"
            return f"its best learning rate, {best:g}, is the {end} that was tried {runs}"
        if self._wanted(results):
            return f"its best learning rates weren't tried with every tuning seed {runs}"
        if self._tied(results) == self._counted(results) and not is_perfect:
            return f"its learning rates are all equally good {runs}, so the best one is unknown"
        return ""

    def _fitted(self, best: float, results: Results) -> tuple[float, str]:
        """Return the minimum of the fit, kept between the best rate's neighbours, and how it was found."""
        loss = self._mean_losses(results)
        near, window = self._near(best, results, 1), self._near(best, results, REACH)
        if (tied := len(self._tied(results))) > 1:
            return best, f"the middle one of {tied} rates with the lowest mean loss"
        if self._is_perfect(best, results):
            return best, "the lowest mean loss, which can't be improved"
        if len(window) < 3:
            return best, "the lowest mean loss, because too few neighbouring rates succeeded for a fit"
        tries = [len(self.seeds) - len(missing(_values(rate), results, self.seeds)) for rate in window]
        weights = [count * (1 if rate in near else FAR) for count, rate in zip(tries, window)]
        places = np.log2(np.array(window) / best)
        bend, slope, _ = np.polyfit(places, [loss[_values(rate)] for rate in window], 2, w=np.sqrt(weights))
        if bend <= 0:
            return best, "the lowest mean loss, because a quadratic through its neighbours has no minimum"
        minimum = _rounded(best * 2 ** float(-slope / (2 * bend)))
        fit = f"a quadratic through {len(window)} rates"
        if near[0] <= minimum <= near[-1]:
            return minimum, f"the minimum of {fit}, within the range that was tried"
        end = near[0] if minimum < near[0] else near[-1]
        return end, f"nearest to the minimum of {fit}, which lies beyond the rates beside the best one"

    def _best(self, results: Results) -> float | None:
        """Return the rate with the lowest loss among those that count, the middle one of several; None without any."""
        tied = self._tied(results)
        return tied[(len(tied) - 1) // 2] if tied else None

    def _tied(self, results: Results) -> list[float]:
        """Return the rates with the lowest loss among those that count."""
        losses = self._mean_losses(results)
        return [rate for rate in self._counted(results) if losses[_values(rate)] == min(losses.values())]

    def _is_perfect(self, rate: float, results: Results) -> bool:
        return cannot_be_improved(self._mean_losses(results)[_values(rate)], self.perfect)

    def _mean_losses(self, results: Results) -> dict[Values, float]:
        return mean_losses([_values(rate) for rate in self._counted(results)], results, self.seeds)

    def _near(self, best: float, results: Results, reach: int) -> list[float]:
        """Return the best rate with up to `reach` rates that count on either side."""
        counted = self._counted(results)
        place = counted.index(best)
        return counted[max(0, place - reach) : place + reach + 1]

    def _counted(self, results: Results) -> list[float]:
        """Return the rates that succeeded, up to the first that didn't."""
        rates = self._rates(results)
        lost = [i for i, rate in enumerate(rates) if not succeeded(_values(rate), results, self.seeds)]
        return rates[: lost[0]] if lost else rates

    def _rates(self, results: Results) -> list[float]:
        return sorted({dict(values)[RATE] for values, _ in results})

    def _factors(self) -> tuple[float, float]:
        """Return the factors between the two lowest and the two highest planned rates."""
        if len(self.planned) == 1:
            return SPACING, SPACING
        return self.planned[1] / self.planned[0], self.planned[-1] / self.planned[-2]


def _values(rate: float) -> Values:
    return ((RATE, rate),)


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
