"""What objectives that predict tokens share: from inputs to the loss of their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from minllm.data.batches import IGNORED
from minllm.model.lm import LM
from minllm.objective import Inputs
from minllm.objective.cross_entropy import head_cross_entropy


def loss_of_targets(model: LM, inputs: Inputs, *, predicted: int) -> Tensor:
    """Return the summed loss of all targets in nats; in training, with the branches' auxiliary losses for each of them.

    Args:
        predicted: how many of the model's tokens may be predicted; their ids are below it.
    """
    losses: list[Tensor] = []
    x_BSD = read(model, inputs, losses=losses)
    loss = head_loss(model, x_BSD, inputs.targets_BT, predicted=predicted, weights_BT=inputs.weights_BT)
    return with_auxiliary(model, loss, losses, inputs)


def nats_of_rows(model: LM, inputs: Inputs, *, predicted: int, right: list[Tensor] | None = None) -> Tensor:
    """Return the summed loss of each row's targets in nats, (B,), without anything that is added in training.

    Args:
        predicted: see `loss_of_targets`.
        right: see `Objective.nats`.
    """
    each_BT = torch.zeros(inputs.targets_BT.shape, device=inputs.targets_BT.device)
    right_BT = None if right is None else torch.zeros_like(inputs.targets_BT, dtype=torch.bool)
    head_loss(
        model,
        read(model, inputs),
        inputs.targets_BT,
        predicted=predicted,
        weights_BT=inputs.weights_BT,
        each_BT=each_BT,
        right_BT=right_BT,
    )
    if right is not None:
        right.append(right_BT[inputs.targets_BT != IGNORED])
    return each_BT.sum(1)


def predictions_of(model: LM, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return the head's input for each counted target, (N, D), and these targets, (N,)."""
    counted_BT = inputs.targets_BT != IGNORED
    return read(model, inputs)[counted_BT], inputs.targets_BT[counted_BT]


def read(
    model: LM, inputs: Inputs, *, losses: list[Tensor] | None = None, ahead: list[Tensor] | None = None
) -> Tensor:
    """Return the head's inputs, (B, S, D); see `LM.hidden`. The encoder reads the source, if there is one."""
    memory_BSD = None
    if inputs.source_BS is not None:
        memory_BSD = model.encode(inputs.source_BS, inputs.source_segments_BS, losses=losses)
    return model.hidden(
        inputs.tokens_BS,
        inputs.segments_BS,
        memory_BSD=memory_BSD,
        memory_segments_BS=inputs.source_segments_BS,
        counted_BT=inputs.present_BS,
        losses=losses,
        ahead=ahead,
        sight=inputs.sight,
    )


def head_loss(
    model: LM,
    x_BSD: Tensor,
    targets_BT: Tensor,
    *,
    predicted: int | None = None,
    z_loss: float = 0.0,
    weights_BT: Tensor | None = None,
    each_BT: Tensor | None = None,
    right_BT: Tensor | None = None,
) -> Tensor:
    """Return the summed cross-entropy of the first T of the head's inputs; see `head_cross_entropy`.

    Args:
        predicted: how many of the model's tokens may be predicted; None means all.
    """
    V = model.vocab_size if predicted is None else predicted
    return head_cross_entropy(
        x_BSD[:, : targets_BT.shape[1]].flatten(0, 1),
        model.head_weight_VD[:V],
        targets_BT.flatten(),
        None if model.head_bias_V is None else model.head_bias_V[:V],
        softcap=model.softcap,
        z_loss=z_loss,
        weights_N=None if weights_BT is None else weights_BT.flatten(),
        each_N=None if each_BT is None else each_BT.view(-1),
        right_N=None if right_BT is None else right_BT.view(-1),
    )


def with_auxiliary(model: LM, loss: Tensor, losses: list[Tensor], inputs: Inputs) -> Tensor:
    """Add the branches' auxiliary losses, for each target, in training."""
    if losses and model.training:
        loss = loss + sum(losses) * (inputs.targets_BT != IGNORED).sum()
    return loss
