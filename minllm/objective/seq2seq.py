"""Sequence to sequence (1409.3215, 1706.03762): an encoder reads the given part, and a decoder generates the target.

    given s₁ s₂ s₃, target t₁ t₂:         source    s₁ s₂ s₃ <end>         read in both directions
                                          decoder   <bos> t₁ t₂            reads the source and its own past
                                          targets   t₁ t₂ <end>

A row of several documents becomes a source and a target that have several too; each target reads its own source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minllm.data.batches import IGNORED, ROUNDED_TO, Batch, Corpus
from minllm.data.source import PairSource, Source
from minllm.errors import UserError
from minllm.generation.generate import continued_rows
from minllm.generation.sampler import Sampling
from minllm.model.context import PAD
from minllm.model.lm import LM
from minllm.objective import Inputs, Objective
from minllm.objective.noise import Noise
from minllm.objective.prefix import begins
from minllm.objective.targets import loss_of_targets, nats_of_rows, predictions_of
from minllm.tokenizer import Tokenizer


class Seq2Seq(Objective):
    """Predict each token of the target from those before it and the given part, which the encoder reads."""

    gives_memory = True
    counts_right = True

    def check(self, source: Source) -> None:
        if not isinstance(source, PairSource):
            raise UserError(
                "objective=seq2seq learns from pairs of a given part and a target, which this data doesn't have: choose"
                " data=pairs, data=reverse or data=tales_pairs, or objective=span, which makes them of plain documents."
            )
        refuse_concat(source, "objective=seq2seq")

    def check_model(self, model: LM) -> None:
        refuse_without_encoder(model, "objective=seq2seq")

    def check_corpus(self, corpus: Corpus) -> None:
        source, lengths = corpus.source, [corpus.store.split("val").lengths.max()]
        if not source.truncate:
            lengths.append(corpus.documents.lengths.max())
        if max(lengths) > source.seq_len:
            raise too_long(source.seq_len, f" to {max(lengths)} or more")

    def inputs(self, batch: Batch, noise: Noise, model: LM) -> Inputs:
        return with_source(batch)

    def loss(self, model: LM, inputs: Inputs) -> Tensor:
        return loss_of_targets(model, inputs, predicted=self.text_size(model))

    def nats(self, model: LM, batch: Batch, noise: Noise, right: list[Tensor] | None = None) -> Tensor:
        return nats_of_rows(model, with_source(batch), predicted=self.text_size(model), right=right)

    def predictions(self, model: LM, batch: Batch) -> tuple[Tensor, Tensor]:
        return predictions_of(model, with_source(batch))

    def generate(
        self,
        model: LM,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        sampling: Sampling,
        stream: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Return the target that the model generates for each prompt, the given part."""
        sources = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(prompts)]
        rows = [[tokenizer.bos_id] for _ in prompts]
        return continued_rows(model, tokenizer, rows, prompts, sampling, stream, sources=sources)


def refuse_concat(source: Source, objective: str) -> None:
    if source.packing == "concat":
        raise UserError(
            f"{objective} reads whole documents, which data.packing=concat cuts: add data.packing=pack or"
            " data.packing=pad."
        )


def refuse_without_encoder(model: LM, objective: str) -> None:
    if model.encoder is None:
        layout = "" if model.reads_memory else " model/layout=decoder"
        raise UserError(f"{objective} needs a model with an encoder: add model/encoder=same{layout}.")


def too_long(length: int, enough: str = "") -> UserError:
    return UserError(
        f"A pair is longer than data.seq_len={length}, so its given part and its target aren't in one row: increase"
        f" data.seq_len{enough}."
    )


def with_source(batch: Batch) -> Inputs:
    """Return a batch in which the given parts have moved to the encoder's source, each followed by <end>.

    Raises:
        UserError: a row or a segment doesn't begin with the beginning of its document.
    """
    T = batch.tokens_BT.shape[1]
    begins_BT, counted_BT = begins(batch), batch.targets_BT != IGNORED
    segments_BT = torch.zeros_like(batch.tokens_BT) if batch.segments_BT is None else batch.segments_BT
    given_BT = torch.zeros_like(counted_BT) if batch.given_BT is None else batch.given_BT
    if (
        batch.given_BT is not None
        and (begins_BT & (segments_BT != PAD) & (batch.tokens_BT != batch.bos_id)).any()
    ):
        raise too_long(T)
    first_BT = counted_BT & (begins_BT | ~counted_BT.roll(1, dims=1))
    source_BS, source_segments_BS = kept(
        given_BT | first_BT,
        (torch.where(first_BT, batch.eos_id, batch.text_BT), batch.pad_id),
        (segments_BT, PAD),
        widest=T,
    )
    bos_BT = batch.tokens_BT.gather(1, starts(begins_BT))
    tokens_BT, targets_BT, segments_BT = kept(
        counted_BT,
        (torch.where(first_BT, bos_BT, batch.tokens_BT), batch.pad_id),
        (batch.targets_BT, IGNORED),
        (segments_BT, PAD),
        widest=T,
    )
    return Inputs(
        tokens_BT,
        targets_BT,
        # a decoder doesn't see the padding after the only document of a row
        None if batch.segments_BT is None else segments_BT,
        source_BS=source_BS,
        source_segments_BS=source_segments_BS,
    )


def starts(begins_BT: Tensor) -> Tensor:
    """Return where each token's segment begins, int64 (B, T)."""
    place_T = torch.arange(begins_BT.shape[1], device=begins_BT.device)
    return torch.where(begins_BT, place_T, 0).cummax(1).values


def kept(kept_BN: Tensor, *columns: tuple[Tensor, int], widest: int) -> list[Tensor]:
    """Return the kept values of each row, in their order, then padding.

    The width is that of the longest row, rounded up, so that compiled code sees few shapes.

    Args:
        columns: values, (B, N), and what they are padded with.
        widest: the greatest width; no row has more values to keep.
    """
    count_B1 = kept_BN.sum(1, keepdim=True)
    rounded = -(-max(1, int(count_B1.max())) // ROUNDED_TO) * ROUNDED_TO
    width = min(rounded, widest, kept_BN.shape[1])
    order_BS = kept_BN.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    here_BS = torch.arange(width, device=kept_BN.device) < count_B1
    return [torch.where(here_BS, values_BN.gather(1, order_BS), fill) for values_BN, fill in columns]
