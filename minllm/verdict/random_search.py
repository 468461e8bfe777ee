"""Tuning several hyper-parameters by random search: every arm tries the same draws, as multiples of its own values.

1. Each draw is tried with the first tuning seed.
2. The best few, the finalists, are tried with the other tuning seeds, which may make others the finalists.
3. The finalist with the lowest mean loss is chosen.

If the learning rate is tuned, a draw counts only if no draw with a learning rate up to its own diverged or failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minllm.study.tuning import RATE, Tuning
from minllm.verdict.results import (
    Results,
    Round,
    Values,
    cannot_be_improved,
    mean_losses,
    missing,
    ranked,
    succeeded,
    tried,
)

FINALISTS = 3
EDGE = 2 / 3
"""The choice is at an edge if every finalist's value is this far, on a log scale, from the centre of its range."""


def draws_of(centre: Mapping[str, float], trials: int, span: float) -> tuple[Values, ...]:
    """Return the draws of an arm: multiples of its configured values, log-uniform from 1 / `span` to `span`.

    The multiples are the same for every arm. Whole numbers stay whole, and at least 1.
    """
    powers = np.random.default_rng(0).uniform(-1, 1, size=(trials, len(centre)))
    draws = (
        tuple((key, _scaled(value, span ** float(power))) for (key, value), power in zip(centre.items(), row))
        for row in powers
    )
    return tuple(dict.fromkeys(draws))


@dataclass(frozen=True)
class RandomSearch:
    """The random search of an arm.

    draws: the values that are tried
    seeds: the tuning seeds; all draws are tried with the first
    centre: the configured values
    span: the factor from the configured values to the ends of the range
    perfect: the loss that can't be improved
    """

    draws: tuple[Values, ...]
    seeds: tuple[int, ...]
    centre: Mapping[str, float]
    span: float
    perfect: float = 0.0

    @property
    def most_runs(self) -> int:
        """The limit on the number of runs, which bounds how often the finalists may change."""
        return len(self.draws) + 2 * FINALISTS * (len(self.seeds) - 1)

    @property
    def description(self) -> str:
        ends = (f"{key} from {low:g} to {high:g}" for key, (low, high) in self.ranges().items())
        return f"{len(self.draws)} random draws of {', '.join(ends)}"

    @property
    def planned_values(self) -> Sequence[Values]:
        """The values that are tried regardless of the results."""
        return self.draws

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the range of the draws of each key."""
        columns = {key: [dict(draw)[key] for draw in self.draws] for key in self.centre}
        return {key: (min(column), max(column)) for key, column in columns.items()}

    def next_round(self, results: Results) -> Round:
        """Return the next runs; none if the choice is settled or the limit is reached."""
        if not results:
            return [(draw, self.seeds[0]) for draw in self.draws]
        wanted = [run for draw in self._finalists(results) for run in missing(draw, results, self.seeds)]
        return wanted if len(results) + len(wanted) <= self.most_runs else []

    def choice(self, results: Results) -> Tuning | None:
        """Return the choice; None if no draw counts."""
        finalists = self._finalists(results)
        if not finalists:
            return None
        how = f"the lowest mean loss of {len(finalists)} finalists among {len(self.draws)} random draws"
        unsettled = self._unsettled(finalists, results)
        return Tuning(tried(results, self.draws), dict(finalists[0]), how, self.most_runs, unsettled)

    def lowest(self, results: Results) -> Values:
        """Return the draw with the lowest learning rate, or the first one if that isn't tuned."""
        return min(self.draws, key=lambda draw: dict(draw).get(RATE, 0.0))

    def _unsettled(self, finalists: Sequence[Values], results: Results) -> str:
        if any(missing(draw, results, self.seeds) for draw in finalists):
            return f"its best draws weren't tried with every tuning seed after {len(results)} runs"
        if len(finalists) < FINALISTS:
            return f"only {len(finalists)} of its {len(self.draws)} draws trained without failing"
        losses = mean_losses(self._counted(results), results, self.seeds)
        if cannot_be_improved(losses[finalists[0]], self.perfect):
            return ""
        if len(set(losses.values())) == 1:
            return f"its draws are all equally good after {len(results)} runs, so the best one is unknown"
        for key, centre in self.centre.items():
            places = [np.log(dict(draw)[key] / centre) / np.log(self.span) for draw in finalists]
            if min(places) > EDGE or max(places) < -EDGE:
                end = "upper" if places[0] > 0 else "lower"
                return f"its best draws are all near the {end} end of the range of {key} (search.span)"
        return ""

    def _finalists(self, results: Results) -> list[Values]:
        """Return the best draws that count, the best first."""
        return ranked(self._counted(results), results, self.seeds)[:FINALISTS]

    def _counted(self, results: Results) -> list[Values]:
        """Return the draws that count."""
        lost = [draw for draw in self.draws if not succeeded(draw, results, self.seeds)]
        limit = min((dict(draw)[RATE] for draw in lost if RATE in self.centre), default=np.inf)
        return [draw for draw in self.draws if draw not in lost and dict(draw).get(RATE, -np.inf) < limit]


def _scaled(value: float, multiple: float) -> float:
    if isinstance(value, int):
        return max(1, round(value * multiple))
    return float(f"{value * multiple:.3g}")
