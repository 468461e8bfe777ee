"""Span corruption (T5, 1910.10683): an encoder reads a document with gaps, and a decoder generates what belongs there.

    document   thank you for inviting me to your party last week
    source     thank you <0> me to your party <1> week <end>
    target     <0> for inviting <1> last <end>

A gap for the whole document makes it an autoregressive model, which is what is evaluated:

    source     <0> <end>
    target     <0> thank you for inviting me to your party last week <end>          <0> is known and doesn't count
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minllm.data.batches import IGNORED, Batch
from minllm.data.source import Source
from minllm.errors import UserError
from minllm.generation.generate import continued_rows
from minllm.generation.sampler import Sampling
from minllm.model.context import PAD
from minllm.model.lm import LM
from minllm.objective import Inputs, Objective, around_hole
from minllm.objective.noise import Noise
from minllm.objective.prefix import begins
from minllm.objective.seq2seq import kept, refuse_concat, refuse_without_encoder, starts
from minllm.objective.targets import loss_of_targets, nats_of_rows, predictions_of
from minllm.schema.options import BelowOne, Count, Fraction, Positive
from minllm.tokenizer import Tokenizer

MORE = 2
"""How many tokens a source or a target may have beyond those of its row: a sentinel, and <end>."""


class Span(Objective):
    """Predict spans of a document that are drawn at random, from the rest of it.

    It is evaluated with one span, the whole document, which gives the exact likelihood of the document under what
    `generate` produces: sentinels are never generated, so they have no probability. Of pairs, the given part is in the
    source. A model that has only seen short spans is far from its best there, unless some training spans reach to the
    end (`to_end`).

    Args:
        density: the share of tokens that are in spans; at least one of each document is.
        mean_span: the mean length of spans in tokens. Their lengths are drawn as in T5.
        to_end: the share of documents with a single span instead, from a random place to the end, as the sequential
            denoising of UL2 (2205.05131).
        sentinels: how many spans a document may have; each has a token of its own.
        length: tokens in a row, `data.seq_len`.

    Raises:
        UserError: a row has more spans than there are sentinels.
    """

    special_name = "sentinels"
    predicts_special = True
    gives_memory = True
    counts_right = True
    fills_holes = True

    def __init__(
        self, *, density: BelowOne, mean_span: Positive, to_end: Fraction, sentinels: Count, length: Count
    ):
        most = min(round(length * density), round(round(length * density) / mean_span))
        if most > sentinels:
            raise UserError(
                f"A row of data.seq_len={length} has up to {most} spans, and objective.sentinels={sentinels} is fewer:"
                f" set objective.sentinels={most}, or increase objective.mean_span."
            )
        self.length = length
        self.density, self.mean_span, self.to_end = density, mean_span, to_end
        self.extra_tokens = sentinels

    def check(self, source: Source) -> None:
        refuse_concat(source, "objective=span")

    def check_model(self, model: LM) -> None:
        refuse_without_encoder(model, "objective=span")
        needed = self.length + MORE
        for stack in (model, model.encoder):
            limit = stack.position.max_positions
            if limit is not None and limit < needed:
                raise UserError(
                    f"objective=span needs {needed} positions, for rows of data.seq_len={self.length} and their"
                    f" sentinels, but the model has {limit}: set model.pos.max_len={needed}."
                )

    # ---- learning

    def inputs(self, batch: Batch, noise: Noise, model: LM) -> Inputs:
        text_BT = (batch.targets_BT != IGNORED) & (batch.targets_BT != batch.eos_id)
        noise_BT = spans(text_BT, begins(batch), noise, self.density, self.mean_span, self.to_end)
        return corrupted(batch, noise_BT, self.special_ids(model).start)

    def loss(self, model: LM, inputs: Inputs) -> Tensor:
        return loss_of_targets(model, inputs, predicted=self.special_ids(model).stop)

    # ---- evaluating and generating

    def nats(self, model: LM, batch: Batch, noise: Noise, right: list[Tensor] | None = None) -> Tensor:
        return nats_of_rows(
            model, self._in_one_span(model, batch), predicted=self.text_size(model), right=right
        )

    def predictions(self, model: LM, batch: Batch) -> tuple[Tensor, Tensor]:
        return predictions_of(model, self._in_one_span(model, batch))

    def _in_one_span(self, model: LM, batch: Batch) -> Inputs:
        """Return each document as a single span, whose sentinel doesn't count."""
        first = self.special_ids(model).start
        inputs = corrupted(batch, batch.targets_BT != IGNORED, first, ends=False)
        targets_BT = inputs.targets_BT
        return replace(inputs, targets_BT=torch.where(targets_BT >= first, IGNORED, targets_BT))

    def generate(
        self,
        model: LM,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        sampling: Sampling,
        stream: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Return what fills the hole of each prompt; without one, what follows it."""
        sentinel, sources = self.special_ids(model).start, []
        for prompt in prompts:
            ids, rest = tokenizer.encode_batch(around_hole(prompt))
            sources.append([*ids, sentinel, *rest, tokenizer.eos_id])
        rows = [[tokenizer.bos_id, sentinel] for _ in prompts]
        return continued_rows(model, tokenizer, rows, prompts, sampling, stream, sources=sources)


def spans(
    text_BT: Tensor, begins_BT: Tensor, noise: Noise, density: float, mean_span: float, to_end: float
) -> Tensor:
    """Return which tokens of a text are in spans, bool (B, T).

    A document of n tokens has round(density · n) of them in spans, and there are round(that / mean_span) spans. Both
    these tokens and the others are divided into so many parts of one or more, all divisions being equally likely; parts
    of the one and the other kind alternate, so that a document begins outside of spans and ends in one.

    Args:
        text_BT: the tokens of the text; one segment's are contiguous.
        begins_BT: where segments begin.
    """
    B, T = text_BT.shape
    chance_BT, choice_BT, cut_BT = (numbers.to(text_BT.device) for numbers in noise.uniform(3, T).unbind(1))
    # the tokens of the text come first, and each is known by its document d and its number r there, of n
    order_BT = text_BT.int().argsort(dim=1, descending=True, stable=True)
    is_text_BT = text_BT.gather(1, order_BT)
    d_BT = torch.where(is_text_BT, (begins_BT.cumsum(1) - 1).gather(1, order_BT), T)
    place_BT = torch.arange(T, device=text_BT.device).expand(B, T)
    n_BT = torch.zeros(B, T + 1, dtype=torch.int64, device=text_BT.device)
    n_BT = n_BT.scatter_add(1, d_BT, torch.ones_like(d_BT)).gather(1, d_BT)
    first_BT = (place_BT == 0) | (d_BT != d_BT.roll(1, dims=1))
    r_BT = place_BT - torch.where(first_BT, place_BT, 0).cummax(1).values
    noisy_BT = (n_BT.double() * density).round().long().clamp(min=1).minimum((n_BT - 1).clamp(min=1))
    plain_BT = n_BT - noisy_BT
    spans_BT = (noisy_BT.double() / mean_span).round().long().clamp(min=1)
    spans_BT = spans_BT.minimum(torch.minimum(noisy_BT, plain_BT).clamp(min=1))

    # the first tokens stand for those outside of spans, and the others for those in spans; each but the first of its
    # kind may begin a new part, and as many as needed do
    in_span_BT = r_BT >= plain_BT
    may_begin_BT = (r_BT > 0) & (r_BT != plain_BT)
    kind_BT = 2 * d_BT + in_span_BT
    rank_BT = (kind_BT + torch.where(may_begin_BT, chance_BT, 1.0).double() / 2).argsort(1).argsort(1)
    rank_BT = rank_BT - (place_BT - r_BT) - torch.where(in_span_BT, plain_BT, 0)
    new_BT = may_begin_BT & (rank_BT < spans_BT - 1)
    part_BT = new_BT.cumsum(1)
    part_BT = part_BT - part_BT.gather(1, place_BT - r_BT)
    part_BT = part_BT - torch.where(in_span_BT, spans_BT - 1, 0)
    # parts of both kinds alternate
    alternating_BT = (d_BT * 2 * (T + 1) + 2 * part_BT + in_span_BT).argsort(dim=1, stable=True)
    noise_BT = in_span_BT.gather(1, alternating_BT)

    to_end_BT = choice_BT.gather(1, d_BT.clamp(max=T - 1)) < to_end
    from_BT = (cut_BT.gather(1, d_BT.clamp(max=T - 1)) * n_BT).long()
    noise_BT = torch.where(to_end_BT, r_BT >= from_BT, noise_BT) & is_text_BT
    return torch.zeros_like(text_BT).scatter(1, order_BT, noise_BT)


def corrupted(batch: Batch, noise_BT: Tensor, first: int, *, ends: bool = True) -> Inputs:
    """Return a source with a sentinel in place of each span, and the spans as the target.

    What comes before the counted targets (a given part, or the previous window of a long document) is in the source.

    Args:
        noise_BT: which targets are in spans.
        first: the id of the first sentinel.
        ends: whether targets end in <end> whatever they are; otherwise only where <end> is in a span.
    """
    T = batch.tokens_BT.shape[1]
    # packed documents have a sentinel each
    widest = T + MORE if ends or batch.segments_BT is None else 2 * T
    begins_BT, counted_BT = begins(batch), batch.targets_BT != IGNORED
    segments_BT = torch.zeros_like(batch.tokens_BT) if batch.segments_BT is None else batch.segments_BT
    last_BT = counted_BT & ~((counted_BT & ~begins_BT).roll(-1, dims=1))
    last_BT[:, -1] = counted_BT[:, -1]
    goes_on_BT = counted_BT.flip(1).cummax(1).values.flip(1)
    known_BT = goes_on_BT & ~counted_BT & (segments_BT != PAD)
    text_BT = batch.text_BT
    opens_BT = noise_BT & (begins_BT | ~noise_BT.roll(1, dims=1))
    opened_BT = opens_BT.cumsum(1)
    before_BT = (opened_BT - opens_BT.long()).gather(1, starts(begins_BT))
    sentinel_BT = first + opened_BT - before_BT - 1

    # each token gives a source up to two, and a target up to three
    is_end_BT = counted_BT & (text_BT == batch.eos_id)
    in_source_BT = known_BT | opens_BT | (counted_BT & ~noise_BT & ~is_end_BT)
    source_BT = torch.where(opens_BT, sentinel_BT, text_BT)
    source_BS, source_segments_BS = kept(
        slots(in_source_BT, last_BT),
        (slots(source_BT, torch.full_like(source_BT, batch.eos_id)), batch.pad_id),
        (slots(segments_BT, segments_BT), PAD),
        widest=widest,
    )
    end_BT = last_BT if ends else torch.zeros_like(last_BT)
    targets_BS, target_segments_BS = kept(
        slots(opens_BT, noise_BT, end_BT),
        (slots(sentinel_BT, text_BT, torch.full_like(text_BT, batch.eos_id)), IGNORED),
        (slots(segments_BT, segments_BT, segments_BT), PAD),
        widest=widest,
    )
    # a decoder reads what it has to predict one token later, and <bos> first
    tokens_BS = targets_BS.roll(1, dims=1)
    new_BS = target_segments_BS != target_segments_BS.roll(1, dims=1)
    new_BS[:, 0] = True
    tokens_BS = torch.where(new_BS, batch.bos_id, tokens_BS)
    tokens_BS = torch.where(target_segments_BS == PAD, batch.pad_id, tokens_BS)
    return Inputs(
        tokens_BS,
        targets_BS,
        None if batch.segments_BT is None else target_segments_BS,
        source_BS=source_BS,
        source_segments_BS=source_segments_BS,
    )


def slots(*columns: Tensor) -> Tensor:
    """Return the values of each token beside each other, (B, T · columns)."""
    return torch.stack(columns, -1).flatten(1)
