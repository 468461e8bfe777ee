"""Predict each next token from those before it."""

from __future__ import annotations

import torch
from torch import Tensor

from minllm.data.batches import IGNORED
from minllm.model.lm import LM
from minllm.objective.cross_entropy import head_cross_entropy
from minllm.schema.options import Natural, NonNegative


class Causal:
    """Next-token prediction, the objective of every GPT.

    Args:
        predict_ahead: how many tokens after the next one are predicted too, each by its own layer (2404.19737).
        ahead_weight: weight of the loss of each of those, relative to the next token.
        z_loss: weight of the squared logarithm of the softmax's denominator, which keeps logits near 0 (2204.02311).

    None of these affect evaluation: the validation loss is that of the next token.
    """

    def __init__(self, *, predict_ahead: Natural, ahead_weight: NonNegative, z_loss: NonNegative):
        self.predict_ahead, self.ahead_weight, self.z_loss = predict_ahead, ahead_weight, z_loss

    def loss(
        self,
        model: LM,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        segments_BT: Tensor | None,
        rows_B: Tensor | None = None,
    ) -> Tensor:
        """Return the sum of the losses of all counted targets, in nats; targets of -100 don't count.

        It is a sum and not a mean, so that a batch can be split into micro-batches without changing the loss. In
        training, the branches' auxiliary losses are added for each counted target.

        Args:
            rows_B: in evaluation, each row's part of the loss is added to it, if it is given.
        """
        losses: list[Tensor] = []
        ahead: list[Tensor] | None = [] if model.training and self.predict_ahead else None
        counted_BT = targets_BT != IGNORED
        x_BTD = model.hidden(tokens_BT, segments_BT, counted_BT=counted_BT, losses=losses, ahead=ahead)
        each_BT = None if rows_B is None else torch.zeros_like(targets_BT, dtype=rows_B.dtype)
        loss = self._head_loss(model, x_BTD, targets_BT, each_BT)
        if rows_B is not None:
            rows_B += each_BT.sum(1)
        for x_BTD in ahead or []:
            targets_BT = _one_later(targets_BT, segments_BT)
            loss = loss + self.ahead_weight * self._head_loss(model, x_BTD, targets_BT)
        if losses and model.training:
            loss = loss + sum(losses) * counted_BT.sum()
        return loss

    def _head_loss(
        self, model: LM, x_BTD: Tensor, targets_BT: Tensor, each_BT: Tensor | None = None
    ) -> Tensor:
        return head_cross_entropy(
            x_BTD.flatten(0, 1),
            model.head_weight_VD,
            targets_BT.flatten(),
            model.head_bias_V,
            softcap=model.softcap,
            z_loss=self.z_loss if model.training else 0.0,
            each_N=None if each_BT is None else each_BT.view(-1),
        )


def _one_later(targets_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
    """Return the targets one token later; IGNORED where that is in another text or beyond the end."""
    later_BT = torch.full_like(targets_BT, IGNORED)
    later_BT[:, :-1] = targets_BT[:, 1:]
    goes_on_BT = targets_BT != IGNORED
    if segments_BT is not None:
        goes_on_BT[:, :-1] &= segments_BT[:, 1:] == segments_BT[:, :-1]
    return torch.where(goes_on_BT, later_BT, IGNORED)
