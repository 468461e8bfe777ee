"""Fill in the middle (2207.14255): some documents are rearranged so that a middle part comes last.

prefix middle suffix   ──▶   <pre> prefix <suf> suffix <mid> middle <end>          (psm)
                             <pre> <suf> suffix <mid> prefix middle <end>          (spm)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minllm.data.batches import IGNORED, Batch
from minllm.data.probe import Probe
from minllm.data.source import PairSource, Source
from minllm.errors import UserError
from minllm.generation.generate import continued_rows
from minllm.generation.sampler import Sampling
from minllm.model.lm import LM
from minllm.objective import HOLE, Inputs, Objective, around_hole
from minllm.objective.noise import Noise
from minllm.objective.targets import loss_of_targets, nats_of_rows
from minllm.schema.options import Fraction
from minllm.tokenizer import Tokenizer

SPECIAL = 3
"""How many tokens are added to a rearranged document: <pre>, <suf> and <mid>."""


class FillInTheMiddle(Objective):
    """Predict each next token, in documents of which a share is rearranged. Special tokens aren't predicted.

    It is evaluated on documents as they are, like `causal`. Given parts stay where they are.

    Args:
        rate: the share of rows that are rearranged.
        spm: the share of those with the suffix first; the others have the prefix first.
    """

    extra_tokens = SPECIAL
    special_name = "parts of a rearranged document"
    fills_holes = True
    counts_right = True

    def __init__(self, *, rate: Fraction, spm: Fraction):
        self.rate, self.spm = rate, spm

    def check(self, source: Source) -> None:
        if isinstance(source, Probe):
            raise UserError(
                "objective=fim rearranges one target in a row, and examples of probes may have several answers: choose"
                " objective=causal."
            )
        if source.packing == "pack":
            raise UserError(
                "objective=fim rearranges rows, which must not have several documents apart: choose data.packing=pad or"
                " concat."
            )
        if source.packing == "concat" and isinstance(source, PairSource):
            raise UserError(
                "objective=fim rearranges one target in a row, and data.packing=concat puts several pairs there: choose"
                " data.packing=pad."
            )

    def inputs(self, batch: Batch, noise: Noise, model: LM) -> Inputs:
        first = self.special_ids(model).start
        tokens_BT, targets_BT = batch.tokens_BT.clone(), batch.targets_BT.clone()
        for row, (u_rearranged, u_spm, u_from, u_to) in enumerate(noise.uniform(4).tolist()):
            if u_rearranged < self.rate:
                rearrange(
                    tokens_BT[row], targets_BT[row], first, batch.eos_id, u_spm < self.spm, (u_from, u_to)
                )
        return Inputs(tokens_BT, targets_BT, batch.segments_BT)

    def loss(self, model: LM, inputs: Inputs) -> Tensor:
        return loss_of_targets(model, inputs, predicted=self.text_size(model))

    def nats(self, model: LM, batch: Batch, noise: Noise, right: list[Tensor] | None = None) -> Tensor:
        inputs = super().inputs(batch, noise, model)
        return nats_of_rows(model, inputs, predicted=self.text_size(model), right=right)

    def generate(
        self,
        model: LM,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        sampling: Sampling,
        stream: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Continue each prompt, or return what fills its hole."""
        pre, suf, mid = self.special_ids(model)
        rows = []
        for prompt in prompts:
            prefix, suffix = tokenizer.encode_batch(around_hole(prompt))
            is_middle = HOLE in prompt
            rows.append([tokenizer.bos_id, *([pre, *prefix, suf, *suffix, mid] if is_middle else prefix)])
        return continued_rows(model, tokenizer, rows, prompts, sampling, stream)


def rearrange(
    tokens_T: Tensor, targets_T: Tensor, first: int, eos: int, spm: bool, cuts: tuple[float, float]
) -> None:
    """Rearrange a row's counted targets in place; the last few are dropped where there is no room for special tokens.

    A row that would keep none of its text stays as it is.

    Args:
        first: the id of <pre>; <suf> and <mid> follow.
        cuts: numbers in [0, 1) that say where the middle begins and ends.
    """
    counted_T = targets_T != IGNORED
    start, length = int(counted_T.int().argmax()), int(counted_T.sum())
    text = targets_T[start : start + length].tolist()
    if text[-1:] == [eos]:
        text.pop()
    room = len(tokens_T) - start - SPECIAL - 1
    if room < 1:
        return
    text = text[:room]
    a, b = sorted(int(cut * (len(text) + 1)) for cut in cuts)
    prefix, middle, suffix = text[:a], text[a:b], text[b:]
    pre, suf, mid = range(first, first + SPECIAL)
    first_part = [pre, suf, *suffix, mid, *prefix] if spm else [pre, *prefix, suf, *suffix, mid]
    new = [*first_part, *middle, eos]
    after_T = torch.tensor(new)
    targets_T[start:] = IGNORED
    targets_T[start : start + len(new)] = torch.where(after_T >= first, IGNORED, after_T)
    tokens_T[start + 1 : start + len(new)] = after_T[:-1]
