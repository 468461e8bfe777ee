"""Random numbers of objectives: those of a row depend on the seed, the step and the row alone.

Halving the micro-batch, resuming, or sharing the rows among processes therefore changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minllm.model.seed import generator


@dataclass(frozen=True)
class Noise:
    """The random numbers for some rows of a batch, on the CPU.

    Every call draws the next numbers, so an objective must always draw in the same order.

    seed: the run's seed
    step: the training step, or a name such as "evaluation"
    rows: the rows' numbers in the whole batch
    of: the number of rows in the whole batch
    """

    seed: int
    step: int | str
    rows: range
    of: int

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
        places_B = torch.tensor([row / self.of for row in self.rows], dtype=torch.float64)
        return ((shared + places_B.view(-1, *[1] * len(shape))) % 1).float()

    def _stacked(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(g) for g in self._generators])

    @functools.cached_property
    def _shared(self) -> torch.Generator:
        return generator(self.seed, f"noise/{self.step}")

    @functools.cached_property
    def _generators(self) -> list[torch.Generator]:
        return [generator(self.seed, f"noise/{self.step}/{row}") for row in self.rows]
