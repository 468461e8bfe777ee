"""Prefix language models (1910.10683): the given part is read in both directions, the rest from left to right.

given     # # # . . .        Inputs are one token behind what they predict, so the token that predicts the first
          # # # . . .        target is itself given: all that it sees is known.
          # # # . . .
the rest  # # # # . .
          # # # # # .
          # # # # # #
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minllm.data.batches import IGNORED, Batch
from minllm.generation.generate import continued
from minllm.generation.sampler import Sampling
from minllm.model.context import Sight
from minllm.model.lm import LM
from minllm.model.stack import positions_in
from minllm.objective import Inputs, Objective
from minllm.objective.noise import Noise
from minllm.objective.targets import loss_of_targets, nats_of_rows
from minllm.tokenizer import Tokenizer


class Prefix(Objective):
    """Predict each token after the given part. Documents without one are given up to a random place in training.

    In evaluation only what is really given is read in both directions, so on plain documents it is that of `causal`.
    """

    attends = "given"
    counts_right = True

    def inputs(self, batch: Batch, noise: Noise, model: LM) -> Inputs:
        if batch.given_BT is None:
            given_BT = beginnings(batch, noise)
            batch = replace(
                batch, targets_BT=batch.targets_BT.masked_fill(given_BT, IGNORED), given_BT=given_BT
            )
        return with_given_seen(batch)

    def loss(self, model: LM, inputs: Inputs) -> Tensor:
        return loss_of_targets(model, inputs, predicted=self.text_size(model))

    def nats(self, model: LM, batch: Batch, noise: Noise, right: list[Tensor] | None = None) -> Tensor:
        return nats_of_rows(model, with_given_seen(batch), predicted=self.text_size(model), right=right)

    def generate(
        self,
        model: LM,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        sampling: Sampling,
        stream: Callable[[str], None] | None = None,
    ) -> list[str]:
        return continued(model, tokenizer, prompts, sampling, stream, sight=Sight(sees_all=True))


def with_given_seen(batch: Batch) -> Inputs:
    """Return a batch in which the inputs of the given part see each other."""
    if batch.given_BT is None:
        return Inputs(batch.tokens_BT, batch.targets_BT, batch.segments_BT)
    place_T = torch.arange(batch.tokens_BT.shape[1], device=batch.tokens_BT.device)
    seen_BT = batch.given_BT.roll(1, dims=1) | begins(batch)
    order_BT = torch.where(seen_BT, 0, 2 * place_T)
    return Inputs(batch.tokens_BT, batch.targets_BT, batch.segments_BT, order_BS=order_BT)


def begins(batch: Batch) -> Tensor:
    """Return which tokens begin a segment, bool (B, T)."""
    return (positions(batch) == 0).expand(batch.tokens_BT.shape)


def positions(batch: Batch) -> Tensor:
    return positions_in(batch.tokens_BT.shape[1], batch.segments_BT, batch.tokens_BT.device)


def beginnings(batch: Batch, noise: Noise) -> Tensor:
    """Return which targets come before a place drawn for each segment; at least one target remains."""
    B, T = batch.tokens_BT.shape
    number_BT = begins(batch).cumsum(1) - 1
    size_BT = torch.zeros(B, T, dtype=torch.int64)
    size_BT = size_BT.scatter_add(1, number_BT, (batch.targets_BT != IGNORED).long())
    given_BT = (noise.uniform(T) * size_BT).long().gather(1, number_BT)
    return (positions(batch) < given_BT) & (batch.targets_BT != IGNORED)
