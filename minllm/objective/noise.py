"""Random numbers of objectives: those of a row depend on the seed, the step and the row alone.

Halving the micro-batch, resuming, or sharing the rows among processes therefore changes nothing.
"""

from __future__ import annotations

import functools
import itertools
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minllm.model.seed import generator, number


@dataclass(frozen=True)
class Noise:
    """The random numbers for some rows of a batch, on the CPU.

    Every call draws the next numbers, so an objective must always draw in the same order.

    seed: the run's seed
    step: the training step, or a name such as "evaluation"
    rows: the rows' numbers in the whole batch
    of: the number of rows in the whole batch
    among: the numbers of those over which `spread` spreads; None means all
    """

    seed: int
    step: int | str
    rows: Sequence[int]
    of: int
    among: Sequence[int] | None = None

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1) for each row, (B, *shape)."""
        return self._stacked(lambda g: torch.rand(shape, generator=g))

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers for each row, (B, *shape)."""
        return self._stacked(lambda g: torch.randn(shape, generator=g))

    def spread(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1) that are spread evenly over the rows of the whole batch, (B, *shape).

        Row i of n has (u + i/n) mod 1 for a number u that all rows share: each is uniform, and their mean hardly
        varies.
        """
        shared = torch.rand(shape, generator=self._shared, dtype=torch.float64)
        among = range(self.of) if self.among is None else self.among
        places_B = torch.tensor([among.index(row) / len(among) for row in self.rows], dtype=torch.float64)
        return ((shared + places_B.view(-1, *[1] * len(shape))) % 1).float()

    def divided(self, weights: Sequence[float]) -> list[int]:
        """Return which of the weights each row of the whole batch is assigned to.

        The numbers of rows are proportional to the weights, rounded up or down at random so that this holds on average.
        Nothing is taken from the random numbers that the other methods draw.
        """
        u = number(self.seed, f"mixture/{self.step}") / 2**63
        *ends, whole = itertools.accumulate(weights)
        return [bisect(ends, (u + row / self.of) % 1 * whole) for row in range(self.of)]

    def of_rows(self, rows: Sequence[int]) -> Noise:
        """Return the noise of those of these rows of the whole batch that are here, as yet undrawn."""
        return replace(self, rows=[row for row in self.rows if row in rows], among=rows)

    def _stacked(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(g) for g in self._generators])

    @functools.cached_property
    def _shared(self) -> torch.Generator:
        return generator(self.seed, f"noise/{self.step}")

    @functools.cached_property
    def _generators(self) -> list[torch.Generator]:
        return [generator(self.seed, f"noise/{self.step}/{row}") for row in self.rows]
