"""The runs of each model on each dataset, and whether the datasets rank the models alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minllm.estimates import Estimate
from minllm.study.intervals import LEAST_RESAMPLED
from minllm.study.ranking.correlation import Swap, correlations, swaps
from minllm.study.tuning import Tuning
from minllm.study.verdict import Word

LEAST_MODELS = LEAST_RESAMPLED
"""With fewer models, a rank correlation has no interval."""


@dataclass(frozen=True)
class Cell:
    """A model on a dataset.

    planned: how many seeds were planned
    losses: bits per byte by seed, above the corpus's floor where this is known; infinite where training diverged
    tuning: what was tried and chosen; None if time ran out before
    is_bound: whether the losses are upper bounds
    """

    model: str
    dataset: str
    planned: int
    losses: Mapping[int, float]
    tuning: Tuning | None = None
    is_bound: bool = False

    @property
    def mean(self) -> float | None:
        """The mean loss over seeds, infinite if training diverged with one; None without a run."""
        return math.fsum(self.losses.values()) / len(self.losses) if self.losses else None

    @property
    def is_complete(self) -> bool:
        return len(self.losses) >= self.planned


@dataclass(frozen=True)
class Agreement:
    """How a dataset ranks the models, against the first dataset.

    models: those with a run on both, in the order in which they were typed
    spearman, kendall: the rank correlations, Spearman's ρ and Kendall's τ_b
    swaps: the pairs of models that change places, the most certain first, as places among the models
    word: equivalent if the whole interval of Spearman's ρ is above what counts as alike, worse if it is below;
        inconclusive until both datasets are complete
    """

    dataset: str
    baseline: str
    models: Sequence[str]
    spearman: Estimate
    kendall: Estimate
    swaps: Sequence[Swap]
    word: Word

    @property
    def certain_swaps(self) -> list[Swap]:
        return [swap for swap in self.swaps if swap.is_certain]


@dataclass(frozen=True)
class Ranking:
    """Models on datasets.

    cells: by the names of model and dataset
    floors: whether the losses on a dataset are above the corpus's floor, by its name
    alike: the rank correlation above which two datasets count as ranking alike
    command: what repeats it
    """

    models: Sequence[str]
    datasets: Sequence[str]
    cells: Mapping[tuple[str, str], Cell]
    floors: Mapping[str, bool]
    alike: float
    command: str

    @property
    def is_complete(self) -> bool:
        return all(cell.is_complete for cell in self.cells.values())

    @property
    def is_answered(self) -> bool:
        return self.is_complete and all(agreement.word != "inconclusive" for agreement in self.agreements)

    @functools.cached_property
    def agreements(self) -> list[Agreement]:
        """Each dataset against the first."""
        return [self._agreement(dataset) for dataset in self.datasets[1:]]

    def _agreement(self, dataset: str) -> Agreement:
        both = (self.datasets[0], dataset)
        models = [model for model in self.models if all(self.cells[model, name].losses for name in both)]
        if len(models) < 2:
            unknown = Estimate(math.nan, (-math.inf, math.inf))
            return Agreement(dataset, both[0], models, unknown, unknown, [], "inconclusive")
        first, second = ([list(self.cells[model, name].losses.values()) for model in models] for name in both)
        spearman, kendall = correlations(first, second)
        complete = all(self.cells[model, name].is_complete for model in self.models for name in both)
        word = self._word(spearman) if complete else "inconclusive"
        return Agreement(dataset, both[0], models, spearman, kendall, swaps(first, second), word)

    def _word(self, spearman: Estimate) -> Word:
        low, high = spearman.interval
        if low >= self.alike:
            return "equivalent"
        return "worse" if high < self.alike else "inconclusive"
