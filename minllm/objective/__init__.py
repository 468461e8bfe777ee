"""Training objectives: what a model learns, how it is evaluated, and how it generates text.

Loop, evaluation and generation know only this interface. A batch goes through an objective like this:

    batch ── inputs(batch, noise, model) ──▶ inputs ── loss(model, inputs) ──▶ a sum of nats
                what the model reads                    of some or all rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from minllm.data.batches import IGNORED, Batch, Corpus, Rows
from minllm.data.source import Source
from minllm.generation.generate import continued
from minllm.generation.sampler import Sampling
from minllm.generation.unmask import HOLE as HOLE
from minllm.generation.unmask import around_hole as around_hole
from minllm.model.context import PAD, Sight
from minllm.model.lm import LM
from minllm.objective.noise import Noise
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.tokenizer import Tokenizer

Bound = Literal["exact", "upper"]


@dataclass(frozen=True)
class Inputs(Rows):
    """What a model reads and has to predict.

    tokens_BS: the tokens that it reads; S may be longer than T
    targets_BT: what it has to predict at the first T of them; -100 where nothing
    segments_BS: the segment of each token, -1 for what isn't there; None if each row is one segment
    weights_BT: the factor of each target's loss; None means 1
    order_BS, positions_BS, sees_all: what a token may see, and its position; see `Sight`
    source_BS, source_segments_BS: the tokens that an encoder reads, whose width is their own, and their segments
    """

    tokens_BS: Tensor
    targets_BT: Tensor
    segments_BS: Tensor | None = None
    weights_BT: Tensor | None = None
    order_BS: Tensor | None = None
    positions_BS: Tensor | None = None
    sees_all: bool = False
    source_BS: Tensor | None = None
    source_segments_BS: Tensor | None = None

    @property
    def sight(self) -> Sight:
        return Sight(self.sees_all, self.order_BS, self.positions_BS)

    @property
    def present_BS(self) -> Tensor:
        """The tokens that count in statistics and auxiliary losses: those with a target, or all that aren't padding."""
        if self.order_BS is None and not self.sees_all:
            return self.targets_BT != IGNORED
        here = torch.ones_like(self.tokens_BS, dtype=torch.bool)
        return here if self.segments_BS is None else self.segments_BS != PAD


class Objective:
    """The base class of `objective:`. A subclass defines `loss` and `nats`, and `inputs` if it changes the batch."""

    extra_tokens: int = 0
    """How many special tokens the objective adds to the model, such as a mask; `special_ids` are their ids."""
    special_name: str | None = None
    """What its special tokens are; in a mixture, parts with the same name share them."""
    predicts_special: bool = False
    """Whether the model learns to predict these tokens too."""
    special_before: int = 0
    special_after: int = 0
    """How many special tokens of a mixture, which sets these numbers, have ids below and above the objective's own."""
    bound: Bound = "exact"
    """Whether `nats` is the negative log-likelihood, or an upper bound of it."""
    attends: Literal["past", "all", "given", "blocks"] = "past"
    """What a token may see of its document: the past; everything; the given part and the past; its block and those
    before."""
    learns_its_inputs: bool = False
    """Whether `inputs` depends on the training steps before, so that it can't be called ahead of them."""
    embedding_std: float | None = None
    """Standard deviation of the embedding's initial values; None leaves it to the model."""
    passes_vary: bool = False
    """Whether the number of passes for a batch depends on its rows, so that processes may make different ones."""
    fills_holes: bool = False
    """Whether a prompt may have a hole, of which `generate` then returns the filling; see `around_hole`."""
    sampling_options: tuple[str, ...] = ()
    """The options under `sample` that `generate` reads besides those of drawing a token."""
    counts_right: bool = False
    """Whether `nats` can tell which targets are predicted right; only if it predicts in order."""
    learns_hidden: bool = False
    """Whether it can learn answers that don't stand in the text; see `minllm.data.answers`."""
    draws_tokens: bool = True
    """Whether `generate` draws tokens from their probabilities, so that `sample.temperature` and the like matter."""
    gives_memory: bool = False
    """Whether cross-attention reads the given part as its memory."""

    @property
    def predicts_in_order(self) -> bool:
        """Whether evaluation predicts one token after the other; if so, `predictions` returns these predictions."""
        return self.attends in ("past", "given")

    def special_ids(self, model: LM) -> range:
        """Return the ids of the objective's special tokens, which follow the tokenizer's."""
        first = self.text_size(model) + self.special_before
        return range(first, first + self.extra_tokens)

    def text_size(self, model: LM) -> int:
        """Return the number of the tokenizer's tokens, whose ids are below it."""
        return model.vocab_size - self.special_before - self.extra_tokens - self.special_after

    def check(self, source: Source) -> None:
        """Raise `UserError` if the objective can't learn from documents in the rows that `source` makes."""

    def parts(self, dim: int, vocab_size: int) -> nn.Module | None:
        """Return a module with the objective's own parameters, which becomes `model.parts`; None if it has none.

        Args:
            dim: width of the model's residual stream.
            vocab_size: the model's number of tokens.
        """
        return None

    def check_model(self, model: LM) -> None:
        """Raise `UserError` if a model lacks what the objective needs."""

    def check_corpus(self, corpus: Corpus) -> None:
        """Raise `UserError` if the objective can't learn from documents of these lengths."""

    def inputs(self, batch: Batch, noise: Noise, model: LM) -> Rows:
        """Return what the model reads for a batch. All random numbers are drawn here, outside compiled code."""
        return Inputs(batch.tokens_BT, batch.targets_BT, batch.segments_BT)

    def loss(self, model: LM, inputs: Rows) -> Tensor:
        """Return the loss of all targets as a sum, which is divided by the batch's number of counted targets.

        It is a sum and not a mean, so that a batch can be split into micro-batches without changing the gradient.
        """
        raise NotImplementedError

    def counted(self, batch: Batch, inputs: Rows) -> int:
        """Return the number of targets in the whole batch; training reports the loss for each of them."""
        return int((inputs.targets_BT != IGNORED).sum())

    def nats(self, model: LM, batch: Batch, noise: Noise, right: list[Tensor] | None = None) -> Tensor:
        """Return the negative log-likelihood of each row's counted targets in nats, (B,), or its upper bound.

        Args:
            right: if given, whether each counted target is the most probable token, bool (N,), is appended, row by row
                as in `predictions`; given only if `counts_right`.
        """
        raise NotImplementedError

    def predictions(self, model: LM, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the head's input for each counted target, (N, D), and these targets, (N,), if `predicts_in_order`."""
        counted_BT = batch.targets_BT != IGNORED
        x_BTD = model.hidden(batch.tokens_BT, counted_BT=counted_BT)
        return x_BTD[counted_BT], batch.targets_BT[counted_BT]

    def generate(
        self,
        model: LM,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        sampling: Sampling,
        stream: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Return what the model generates for each prompt; by default a continuation from left to right.

        Args:
            stream: called with each piece of text as it is generated; for a single prompt only.
        """
        return continued(model, tokenizer, prompts, sampling, stream)


def build_objective(cfg: DictConfig) -> Objective:
    """Return the objective of a configuration, as `minllm.compose` returns it, for `minllm.generate`.

    Raises:
        UserError: an option doesn't exist or has an invalid value.
    """
    validate(cfg)
    return build(cfg.objective)
