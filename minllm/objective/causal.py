"""Predict each next token from those before it."""

from __future__ import annotations

import torch
from torch import Tensor

from minllm.data.batches import IGNORED, Batch
from minllm.model.lm import LM
from minllm.objective import Inputs, Objective
from minllm.objective.noise import Noise
from minllm.objective.targets import head_loss, nats_of_rows, read, with_auxiliary
from minllm.schema.options import Natural, NonNegative


class Causal(Objective):
    """Next-token prediction, the objective of every GPT.

    Args:
        predict_ahead: how many tokens after the next one are predicted too, each by its own layer (2404.19737).
        ahead_weight: weight of the loss of each of those, relative to the next token.
        z_loss: weight of the squared logarithm of the softmax's denominator, which keeps logits near 0 (2204.02311).

    None of these affect evaluation: the validation loss is that of the next token.
    """

    counts_right = True
    learns_hidden = True

    def __init__(self, *, predict_ahead: Natural, ahead_weight: NonNegative, z_loss: NonNegative):
        self.predict_ahead, self.ahead_weight, self.z_loss = predict_ahead, ahead_weight, z_loss

    def loss(self, model: LM, inputs: Inputs) -> Tensor:
        losses: list[Tensor] = []
        predicted = self.text_size(model)
        ahead: list[Tensor] | None = [] if model.training and self.predict_ahead else None
        z_loss = self.z_loss if model.training else 0.0
        targets_BT = inputs.targets_BT
        x_BTD = read(model, inputs, losses=losses, ahead=ahead)
        loss = head_loss(model, x_BTD, targets_BT, predicted=predicted, z_loss=z_loss)
        for x_BTD in ahead or []:
            targets_BT = _one_later(targets_BT, inputs.segments_BS)
            loss = loss + self.ahead_weight * head_loss(
                model, x_BTD, targets_BT, predicted=predicted, z_loss=z_loss
            )
        return with_auxiliary(model, loss, losses, inputs)

    def nats(self, model: LM, batch: Batch, noise: Noise, right: list[Tensor] | None = None) -> Tensor:
        return nats_of_rows(
            model, self.inputs(batch, noise, model), predicted=self.text_size(model), right=right
        )


def _one_later(targets_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
    """Return the targets one token later; IGNORED where that is in another text or beyond the end."""
    later_BT = torch.full_like(targets_BT, IGNORED)
    later_BT[:, :-1] = targets_BT[:, 1:]
    goes_on_BT = targets_BT != IGNORED
    if segments_BT is not None:
        goes_on_BT[:, :-1] &= segments_BT[:, 1:] == segments_BT[:, :-1]
    return torch.where(goes_on_BT, later_BT, IGNORED)
