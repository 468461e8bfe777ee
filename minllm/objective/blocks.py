"""Block diffusion (BD3-LM, 2503.09573): blocks follow one another, and the tokens of a block are unmasked in any order.

A model reads each row twice: with some tokens masked, and as it is. What a token may see (B blocks of two):

                    noised    clean
                    0 0 1 1   0 0 1 1
    noised    0     # # . .   . . . .       a noised block sees itself and the clean blocks before it
              1     . . # #   # # . .
    clean     0     . . . .   # # . .       a clean block sees itself and those before it
              1     . . . .   # # # #

Blocks of one token make it autoregressive; one block for the whole row is masked diffusion (`Masked`), which needs no
clean copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from minllm.data.batches import IGNORED, Batch, Rows
from minllm.data.source import Source
from minllm.errors import UserError
from minllm.generation.sampler import Sampling
from minllm.generation.unmask import unmasked
from minllm.model.context import PAD
from minllm.model.lm import LM
from minllm.objective import Bound, Inputs, Objective
from minllm.objective.noise import Noise
from minllm.objective.schedule import Schedule, masking
from minllm.objective.targets import loss_of_targets, nats_of_rows
from minllm.schema.options import Count
from minllm.tokenizer import Tokenizer


class Blocks(Objective):
    """Absorbing diffusion in blocks of tokens: each is masked with a probability drawn for its block, and learnt.

    The last block of a document is filled up with padding, which the model has to predict too: otherwise the number of
    masked tokens would tell it the document's length for free. The masked token itself is never predicted (SUBS,
    2406.07524).

    Args:
        block: tokens in a block.
        length: tokens in a row, `data.seq_len`.
        schedule: how likely tokens are masked at each time; see `masking`.
        weighted: weigh losses so that their expectation is the evidence lower bound; otherwise all count the same.
        draws: how many noised copies of each row an evaluation averages. Each has an exact number of masked tokens,
            spread over the copies, which varies less than masking each token by chance (2502.09992).
        chain_rule: evaluate the likelihood of unmasking each block from left to right, which is exact but needs as many
            passes as a block has tokens.
    """

    extra_tokens = 1
    special_name = "mask"
    sampling_options = ("steps", "unmask", "trace")
    attends: Literal["all", "blocks"] = "blocks"

    def __init__(
        self,
        *,
        block: Count,
        length: Count,
        schedule: Schedule,
        weighted: bool,
        draws: Count,
        chain_rule: bool,
    ):
        if block > length:
            raise UserError(f"objective.block={block} is more than data.seq_len={length}: make it smaller.")
        self.block, self.length, self.schedule, self.weighted = block, length, schedule, weighted
        self.draws, self.chain_rule = draws, chain_rule

    @property
    def fills_holes(self) -> bool:
        return self.block == self.length

    @property
    def bound(self) -> Bound:
        return "exact" if self.block == 1 or self.chain_rule else "upper"

    def check(self, source: Source) -> None:
        refuse_shared_rows(source)

    # ---- learning

    def inputs(self, batch: Batch, noise: Noise, model: LM) -> Inputs:
        canvas = Canvas(batch, self.block, self.length)
        p_BN, weight_BN = masking(noise.spread(canvas.blocks), self.schedule)
        if not self.weighted:
            weight_BN = torch.ones_like(weight_BN)
        chance_BT = noise.uniform(canvas.width)
        masked_BT = canvas.open_BT & (chance_BT < canvas.of_block(p_BN))
        return canvas.inputs(masked_BT, canvas.of_block(weight_BN), self._mask(model))

    def loss(self, model: LM, inputs: Inputs) -> Tensor:
        return loss_of_targets(model, inputs, predicted=self.text_size(model))

    def counted(self, batch: Batch, inputs: Rows) -> int:
        # all targets, of which a step draws some
        return int((batch.targets_BT != IGNORED).sum())

    # ---- evaluating

    def nats(self, model: LM, batch: Batch, noise: Noise) -> Tensor:
        canvas = Canvas(batch, self.block, self.length)
        exact, device = self.bound == "exact", batch.tokens_BT.device
        copies = self._one_by_one(canvas) if exact else self._masked_exactly(canvas, noise)
        nats = [
            nats_of_rows(
                model,
                canvas.inputs(*copy, self._mask(model)).to(device),
                predicted=self.text_size(model),
            )
            for copy in copies
        ]
        return torch.stack(nats).sum(0) if exact else torch.stack(nats).mean(0)

    def _masked_exactly(self, canvas: Canvas, noise: Noise) -> Sequence[tuple[Tensor, Tensor]]:
        """Return copies with 1 to n of the n open tokens of each block masked, and the weights n / their number."""
        n_BN = canvas.count_BN
        # numbers for a whole row, so that a narrower batch draws the same
        u_BN = noise.uniform(-(-self.length // self.block))[:, : canvas.blocks]
        copies = []
        for draw in range(self.draws):
            chance_BT = noise.uniform(self.length)[:, : canvas.width]
            k_BN = 1 + ((u_BN + draw / self.draws) % 1 * n_BN).long().clamp(max=(n_BN - 1).clamp(min=0))
            masked_BT = canvas.open_BT & (canvas.rank(chance_BT) < canvas.of_block(k_BN))
            copies.append((masked_BT, canvas.of_block(n_BN / k_BN)))
        return copies

    def _one_by_one(self, canvas: Canvas) -> Sequence[tuple[Tensor, Tensor]]:
        """Return copies in which the first, second, … token of each block is the first masked one, and alone counts."""
        copies = []
        for place in range(min(self.block, canvas.width)):
            masked_BT = canvas.open_BT & (canvas.place_T >= place)
            copies.append((masked_BT, (canvas.place_T == place).float().expand(masked_BT.shape)))
        return copies

    # ---- generating

    def generate(
        self,
        model: LM,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        sampling: Sampling,
        stream: Callable[[str], None] | None = None,
    ) -> list[str]:
        return unmasked(
            model,
            tokenizer,
            prompts,
            sampling,
            stream,
            mask=self._mask(model),
            block=self.block,
            length=self.length,
        )

    def _mask(self, model: LM) -> int:
        return self.special_ids(model).start


class Masked(Blocks):
    """Masked diffusion (MDLM, 2406.07524; LLaDA, 2502.09992): the whole row is one block, read in both directions.

    Args:
        length, schedule, weighted, draws, chain_rule: see `Blocks`.
    """

    attends = "all"

    def __init__(self, *, length: Count, **options):
        super().__init__(block=length, length=length, **options)


class Canvas:
    """The rows of a batch as blocks to be noised.

    open_BT: the tokens that may be masked: all but given ones, up to the end of the block in which a document ends
    """

    def __init__(self, batch: Batch, block: int, length: int):
        text_BT = batch.text_BT.cpu()
        known_BT = batch.targets_BT.cpu() == IGNORED
        given_BT = torch.zeros_like(known_BT) if batch.given_BT is None else batch.given_BT.cpu()
        B, T = text_BT.shape
        self.block = block
        self.width = min(-(-T // block) * block, length)
        self.blocks = -(-self.width // block)
        self.place_T = torch.arange(self.width) % block
        self.block_T = torch.arange(self.width) // block

        def widened(x_BT: Tensor, fill: int | bool) -> Tensor:
            return F.pad(x_BT, (0, self.width - T), value=fill)

        self.text_BT = widened(text_BT, batch.pad_id)
        real_BT = widened(~known_BT | given_BT, False)
        # later windows of long documents begin with context, which is real though it isn't counted
        real_BT = real_BT.flip(1).cummax(1).values.flip(1)
        last_B1 = real_BT.sum(1, keepdim=True) - 1
        self.exists_BT = self.block_T <= last_B1 // block
        first_B1 = (~widened(known_BT, True)).int().argmax(1, keepdim=True)
        before_BT = torch.arange(self.width) < first_B1
        self.open_BT = self.exists_BT & ~widened(given_BT, False) & ~before_BT
        self.count_BN = torch.zeros(B, self.blocks).index_add(1, self.block_T, self.open_BT.float())

    def of_block(self, x_BN: Tensor) -> Tensor:
        """Return the value of each token's block, (B, T)."""
        return x_BN[:, self.block_T]

    def rank(self, chance_BT: Tensor) -> Tensor:
        """Return each open token's rank among those of its block, from 0."""
        # blocks in order, and within a block the open tokens by chance
        keys_BT = self.block_T + torch.where(self.open_BT, chance_BT, 1.0).double() / 2
        ranks_BT = keys_BT.argsort(1).argsort(1)
        return ranks_BT - self.block_T * self.block

    def inputs(self, masked_BT: Tensor, weights_BT: Tensor, mask: int) -> Inputs:
        noised_BT = torch.where(masked_BT, mask, self.text_BT)
        targets_BT = torch.where(masked_BT, self.text_BT, IGNORED)
        segments_BT = torch.where(self.exists_BT, 0, PAD)
        if self.blocks == 1:
            segments = None if self.exists_BT.all() else segments_BT
            return Inputs(noised_BT, targets_BT, segments, weights_BT, sees_all=True)
        place_1T = torch.arange(self.width)[None].expand(masked_BT.shape)
        order_BT = 2 * self.block_T[None].expand(masked_BT.shape)
        return Inputs(
            torch.cat([noised_BT, self.text_BT], 1),
            targets_BT,
            torch.cat([segments_BT, segments_BT], 1),
            weights_BT,
            torch.cat([order_BT - 1, order_BT], 1),
            torch.cat([place_1T, place_1T], 1),
        )


def refuse_shared_rows(source: Source) -> None:
    """Raise `UserError` unless each document has rows of its own."""
    if source.packing != "pad":
        raise UserError(
            "This objective reads documents in rows of their own, because the end of a row would otherwise tell it"
            " where a document ends: add data.packing=pad."
        )
