"""Predict each next token from those before it."""

from __future__ import annotations

from torch import Tensor

from minllm.model.lm import LM
from minllm.objective.cross_entropy import IGNORED, head_cross_entropy


class Causal:
    """Next-token prediction, the objective of every GPT."""

    def loss(self, model: LM, tokens_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """Return the sum of the losses of all counted targets, in nats; targets of -100 don't count.

        A sum and not a mean, so that a batch may be cut into micro-batches without changing what it means. In
        training, each counted target pays the branches' auxiliary losses too.
        """
        auxiliary: list[Tensor] = []
        counted_BT = targets_BT != IGNORED
        x_BTD = model.hidden(tokens_BT, segments_BT, losses=auxiliary, counted_BT=counted_BT)
        loss = head_cross_entropy(
            x_BTD.flatten(0, 1), model.head_weight_VD, targets_BT.flatten(), model.softcap
        )
        if auxiliary and model.training:
            loss = loss + sum(auxiliary) * counted_BT.sum()
        return loss
