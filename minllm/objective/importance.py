"""Drawing time steps in proportion to the size of their losses, to which some contribute much more than others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HISTORY = 10
"""How many losses of each time step are remembered."""
UNIFORM = 0.001
"""The share of steps that are drawn uniformly."""


class TimeSteps(nn.Module):
    """Time steps 1 to T, drawn with probabilities proportional to the root mean square of their latest losses.

    Until all have had HISTORY losses, they are drawn uniformly (improved DDPM, 2102.09672). The losses of a training
    step are recorded by row and added after the step in their order, so micro-batches change nothing.
    """

    def __init__(self, steps: int):
        super().__init__()
        # floating-point numbers, as all weights of a checkpoint are
        self.register_buffer("history_TH", torch.zeros(steps, HISTORY))
        self.register_buffer("seen_T", torch.zeros(steps))
        self.t_R: Tensor | None = None
        self.losses_R: Tensor | None = None

    def draw(
        self, uniform_B: Tensor, rows: range | None = None, of: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a time step for each row, and the weight 1 / (T p) of its loss, on the CPU.

        Args:
            uniform_B: numbers in [0, 1).
            rows: the rows' numbers in the whole batch, if other processes draw for the others.
            of: the number of rows in the whole batch.
        """
        of = len(uniform_B) if of is None else of
        rows = range(of) if rows is None else rows
        p_T = self.probabilities().cpu()
        cumulative_T = p_T.cumsum(0)
        t_B = torch.searchsorted(cumulative_T, uniform_B.double() * cumulative_T[-1], right=True)
        t_B = t_B.clamp(max=len(p_T) - 1)
        self.t_R = torch.zeros(of, dtype=torch.int64, device=self.seen_T.device)
        self.t_R[rows.start : rows.stop] = (t_B + 1).to(self.seen_T.device)
        self.losses_R = torch.zeros(of, device=self.seen_T.device)
        return t_B + 1, (1 / (len(p_T) * p_T[t_B])).float()

    def probabilities(self) -> Tensor:
        """Return the probability of each time step, float64."""
        T = len(self.seen_T)
        size_T = self.history_TH.double().square().mean(1).sqrt()
        by_size_T = (1 - UNIFORM) * size_T / size_T.sum() + UNIFORM / T
        warm = (self.seen_T.min() >= HISTORY) & (size_T.sum() > 0)
        return torch.where(warm, by_size_T, 1 / T)

    def record(self, losses_B: Tensor, rows_B: Tensor) -> None:
        """Record the losses of some rows of the batch that was drawn last."""
        if self.losses_R is not None:
            self.losses_R[rows_B] = losses_B.detach().to(self.losses_R.dtype)

    def counts(self) -> list[Tensor]:
        """Return what is 0 for the rows of other processes."""
        return [] if self.t_R is None or self.losses_R is None else [self.t_R, self.losses_R]

    def after_step(self) -> dict[str, Tensor]:
        if self.t_R is not None and self.losses_R is not None:
            # one by one, because several rows may have the same time step
            for t_1, loss_1 in zip((self.t_R - 1).split(1), self.losses_R.split(1)):
                self.history_TH[t_1, self.seen_T[t_1].long() % HISTORY] = loss_1
                self.seen_T[t_1] += 1
            self.t_R = self.losses_R = None
        return {}
