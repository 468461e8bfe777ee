"""Training objectives: how the loss of a batch is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from minllm.model.lm import LM


class Objective(Protocol):
    """The interface of `objective:`. An objective with `gives_memory = True` also supplies cross-attention's memory."""

    def loss(self, model: LM, tokens_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """Return the sum of the losses of all counted targets.

        If it also takes `rows_B`, as `Causal.loss` does, runs record the loss of each validation document.
        """
