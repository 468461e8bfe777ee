"""What a model learns: how a batch becomes a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from minllm.model.lm import LM


class Objective(Protocol):
    """What stands under `objective:`. With `gives_memory = True` it also gives a memory to cross-attention."""

    def loss(self, model: LM, tokens_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """Return the sum of the losses of all counted targets."""
