"""Tuning a mixer on a probe: learning rates × weight decays, and rates beyond an edge until the best isn't at one.

1. Every pair of a rate and a decay is tried with the first tuning seed.
2. Unless the best pair has solved the probe, and while its rate is the lowest or the highest tried, the next two rates
   beyond are tried with its decay.
3. The best pairs are tried with the other tuning seeds, if there are any.
4. The best pair is chosen: the one that solved the probe in the fewest steps, or had the highest accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from minllm.study.tuning import RATE, Tuning
from minllm.verdict.results import Results, Round, Run, Values, missing, ranked, succeeded, tried

DECAY = "optim.weight_decay"
BEYOND = 2
"""How many rates beyond an edge are tried in a round."""
FACTOR = 2.0
"""Between rates beyond an edge, if a single one is planned."""
FINALISTS = 2


def score(trial: FrozenTrial, solved_at: float) -> float:
    """Return a number that is lower for better trials: what its accuracy lacks to 1, or below 0 if it is solved.

    Of trials that solved the probe, the one with the fewest steps is the best: their accuracies differ only in where
    they happened to stop.
    """
    assert trial.value is not None
    return trial.value if 1 - trial.value < solved_at else -1.0 / trial.user_attrs["steps"]


@dataclass(frozen=True)
class RatesAndDecays:
    """What a mixer tries on a probe.

    rates: the planned learning rates, in increasing order
    decays: the planned weight decays
    seeds: the tuning seeds; everything is tried with the first
    most_runs: the limit on the number of runs
    """

    rates: tuple[float, ...]
    decays: tuple[float, ...]
    seeds: tuple[int, ...]
    most_runs: int

    @property
    def description(self) -> str:
        rates, decays = (", ".join(f"{value:g}" for value in values) for values in (self.rates, self.decays))
        return f"{RATE}={rates} × {DECAY}={decays}, and rates beyond if the best is at an edge"

    @property
    def planned_values(self) -> Sequence[Values]:
        return [_values(rate, decay) for rate in self.rates for decay in self.decays]

    def space(self, seeds: int) -> list[str]:
        """Return sweeps in Hydra's grammar that contain everything that may be tried, and the seeds up to `seeds`."""
        below, above = self._factors()
        steps = self.most_runs - len(self.planned_values) + 1  # one more, because rates are rounded
        low, high = self.rates[0] / below**steps, self.rates[-1] * above**steps
        return [
            f"{RATE}=tag(log,interval({low!r},{high!r}))",
            f"{DECAY}=choice({','.join(map(repr, self.decays))})",
            f"seed=range(0,{max(*self.seeds, seeds) + 1})",
        ]

    def next_round(self, results: Results) -> Round:
        """Return the next runs; none if the choice is settled or the limit is reached."""
        wanted = self._wanted(results)
        return wanted if len(results) + len(wanted) <= self.most_runs else []

    def choice(self, results: Results) -> Tuning | None:
        """Return the choice; None if nothing succeeded."""
        best = next(iter(self._ranked(results)), None)
        if best is None:
            return None
        how = (
            "the pair that solved it in the fewest steps"
            if self._is_solved(best, results)
            else "the best accuracy"
        )
        return Tuning(
            tried(results, self.planned_values),
            dict(best),
            how,
            self.most_runs,
            self._unsettled(best, results),
        )

    def lowest(self, results: Results) -> Values:
        return min(values for values, _ in results)

    def _wanted(self, results: Results) -> list[Run]:
        if not results:
            return [(values, self.seeds[0]) for values in self.planned_values]
        best = self._ranked(results)[:FINALISTS]
        if not best:
            return self._beyond(self.lowest(results), 1 / self._factors()[0], len(results))
        if not self._is_solved(best[0], results) and (factor := self._edge(best[0], results)):
            return self._beyond(best[0], factor, len(results))
        return [run for values in best for run in missing(values, results, self.seeds)]

    def _edge(self, values: Values, results: Results) -> float | None:
        """Return the factor to the next rate if this one is the lowest or highest with its decay, else None."""
        rate, decay = dict(values)[RATE], dict(values)[DECAY]
        rates = sorted({dict(other)[RATE] for other, _ in results if dict(other)[DECAY] == decay})
        below, above = self._factors()
        return 1 / below if rate == rates[0] else above if rate == rates[-1] else None

    def _beyond(self, values: Values, factor: float, runs: int) -> list[Run]:
        rate, decay = dict(values)[RATE], dict(values)[DECAY]
        rates = [_rounded(rate * factor**step) for step in range(1, min(BEYOND, self.most_runs - runs) + 1)]
        return [(_values(further, decay), self.seeds[0]) for further in rates]

    def _unsettled(self, best: Values, results: Results) -> str:
        if not self._is_solved(best, results) and self._edge(best, results):
            return (
                f"its best learning rate, {dict(best)[RATE]:g}, is at the edge of what was tried in {len(results)} runs"
                " (search.tuning_runs)"
            )
        if missing(best, results, self.seeds):
            return f"its best values weren't tried with every tuning seed in {len(results)} runs"
        return ""

    def _is_solved(self, values: Values, results: Results) -> bool:
        return all(result < 0 for seed in self.seeds if (result := results.get((values, seed))) is not None)

    def _ranked(self, results: Results) -> list[Values]:
        """Return the values that succeeded, the best first."""
        values = dict.fromkeys(values for values, _ in results)
        return ranked([each for each in values if succeeded(each, results, self.seeds)], results, self.seeds)

    def _factors(self) -> tuple[float, float]:
        """Return the factors between the two lowest and the two highest planned rates."""
        if len(self.rates) == 1:
            return FACTOR, FACTOR
        return self.rates[1] / self.rates[0], self.rates[-1] / self.rates[-2]


def _values(rate: float, decay: float) -> Values:
    return ((RATE, rate), (DECAY, decay))


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
