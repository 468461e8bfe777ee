"""Predict each next token from those before it."""

from __future__ import annotations

import torch
from torch import Tensor

from minllm.data.batches import IGNORED, Batch
from minllm.model.lm import LM
from minllm.objective import Objective
from minllm.objective.cross_entropy import head_cross_entropy
from minllm.objective.noise import Noise
from minllm.schema.options import Natural, NonNegative


class Causal(Objective):
    """Next-token prediction, the objective of every GPT.

    Args:
        predict_ahead: how many tokens after the next one are predicted too, each by its own layer (2404.19737).
        ahead_weight: weight of the loss of each of those, relative to the next token.
        z_loss: weight of the squared logarithm of the softmax's denominator, which keeps logits near 0 (2204.02311).

    None of these affect evaluation: the validation loss is that of the next token.
    """

    def __init__(self, *, predict_ahead: Natural, ahead_weight: NonNegative, z_loss: NonNegative):
        self.predict_ahead, self.ahead_weight, self.z_loss = predict_ahead, ahead_weight, z_loss

    def loss(self, model: LM, inputs: Batch) -> Tensor:
        """Return the sum of the losses of all counted targets, in nats.

        In training, the branches' auxiliary losses are added for each counted target.
        """
        losses: list[Tensor] = []
        ahead: list[Tensor] | None = [] if model.training and self.predict_ahead else None
        targets_BT, counted_BT = inputs.targets_BT, inputs.targets_BT != IGNORED
        x_BTD = model.hidden(
            inputs.tokens_BT, inputs.segments_BT, counted_BT=counted_BT, losses=losses, ahead=ahead
        )
        loss = self._head_loss(model, x_BTD, targets_BT)
        for x_BTD in ahead or []:
            targets_BT = _one_later(targets_BT, inputs.segments_BT)
            loss = loss + self.ahead_weight * self._head_loss(model, x_BTD, targets_BT)
        if losses and model.training:
            loss = loss + sum(losses) * counted_BT.sum()
        return loss

    def nats(self, model: LM, batch: Batch, noise: Noise) -> Tensor:
        counted_BT = batch.targets_BT != IGNORED
        each_BT = torch.zeros(batch.targets_BT.shape, device=batch.targets_BT.device)
        x_BTD = model.hidden(batch.tokens_BT, batch.segments_BT, counted_BT=counted_BT)
        self._head_loss(model, x_BTD, batch.targets_BT, each_BT)
        return each_BT.sum(1)

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
