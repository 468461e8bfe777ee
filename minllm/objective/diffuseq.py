"""DiffuSeq (2210.08933): tokens are embedded, the target is noised step by step, and a model learns to undo it.

    given part    e e e e         the embeddings, never noised
    target        x x x x x x     x_t, between the embeddings (t = 0) and pure noise (t = T)

The model reads both in both directions, and predicts x_0 for the target. Rows are filled up with padding, which is
noised and predicted too: otherwise the number of noised tokens would tell it the target's length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minllm.data.batches import IGNORED, Batch, Rows
from minllm.data.source import Source
from minllm.errors import UserError
from minllm.generation.sampler import Sampling
from minllm.model.context import Sight
from minllm.model.lm import LM
from minllm.objective import Objective
from minllm.objective.blocks import Canvas, refuse_shared_rows
from minllm.objective.denoise import denoised
from minllm.objective.embedded import EMBEDDING_STD, Parts, embedded, for_head, rounded
from minllm.objective.gaussian import Chain
from minllm.objective.noise import Noise
from minllm.objective.targets import head_loss
from minllm.schema.options import Count, Fraction
from minllm.tokenizer import Tokenizer

Clamp = Literal["soft", "nearest", "none"]


@dataclass(frozen=True)
class Noised(Rows):
    """The rows of a batch, and what noises them.

    text_BT: the tokens
    open_BT: the tokens that are noised, bool
    t_B: the time step of each row, from 1
    weights_B: the factor of the loss of its prediction, which corrects for how often its time step is drawn
    start_BTW, noise_BTW: the standard normal noise of x_0, and that of x_t
    rows_B: the index of each row in the whole batch
    """

    text_BT: Tensor
    open_BT: Tensor
    t_B: Tensor
    weights_B: Tensor
    start_BTW: Tensor
    noise_BTW: Tensor
    rows_B: Tensor


class DiffuSeq(Objective):
    """Diffusion in the space of embeddings, with the given part left as it is.

    The loss of each noised token is the mean squared error of the predicted x_0 (at t = 1 of the embedding), plus the
    mean square of what is left of x_0 at t = T, plus the negative log-likelihood of the token given x_0. Losses are
    summed over noised tokens only; the published code averages over the given part too.

    Evaluation is the evidence lower bound of drawing x_T, …, x_0 one after the other, with predictions clamped as in
    generation, and then the tokens: the sum of KL divergences that `nats` describes.

    Args:
        width: dimensions of the space in which tokens are noised.
        steps: of the diffusion process, T.
        clamp: what evaluation and generation do with a prediction: `nearest` replaces it by the nearest embedding, as
            the paper does; `soft` by the mean embedding under the probability that x_t gives each token, times that
            under a Gaussian of unit variance around the prediction; `none` leaves it. A mistake costs most at steps
            with little noise, where x_t alone tells the token, so `soft` gives the lowest bound.
        split: of documents without a given part, the share whose beginning is given in training, up to a token drawn
            uniformly. In evaluation nothing is given, because all of their tokens count.
        ancestral: generate by drawing each x_{t-1} given x_t (DDPM, 2006.11239) rather than deterministically (DDIM,
            2010.02502).
        draws: the number of time steps, spread evenly, that an evaluation averages for each row.
        length: tokens in a row, `data.seq_len`.
    """

    bound = "upper"
    sampling_options = ("steps", "trace", "candidates")
    draws_tokens = False
    attends = "all"
    learns_its_inputs = True
    embedding_std = EMBEDDING_STD

    def __init__(
        self,
        *,
        width: Count,
        steps: Count,
        clamp: Clamp,
        split: Fraction,
        ancestral: bool,
        draws: Count,
        length: Count,
    ):
        if draws > steps:
            raise UserError(f"objective.draws={draws} is more than objective.steps={steps}: make it smaller.")
        self.width, self.steps, self.clamp, self.split, self.ancestral = width, steps, clamp, split, ancestral
        self.draws, self.length = draws, length
        self.chain = Chain(steps)

    def check(self, source: Source) -> None:
        refuse_shared_rows(source)

    def parts(self, dim: int, vocab_size: int) -> Parts:
        return Parts(dim, self.width, self.steps)

    # ---- learning

    def inputs(self, batch: Batch, noise: Noise, model: LM) -> Noised:
        canvas, shape = Canvas(batch, self.length, self.length), (self.length, self.width)
        t_B, weights_B = model.parts.times.draw(noise.spread(), noise.rows, noise.of)
        start_BTW, noise_BTW = noise.normal(*shape), noise.normal(*shape)
        open_BT = canvas.open_BT if batch.given_BT is not None else self._split(canvas, batch, noise)
        rows_B = torch.arange(noise.rows.start, noise.rows.stop)
        return Noised(canvas.text_BT, open_BT, t_B, weights_B, start_BTW, noise_BTW, rows_B)

    def _split(self, canvas: Canvas, batch: Batch, noise: Noise) -> Tensor:
        """Return the open tokens without the beginnings that are given; at least one counted token stays open."""
        is_split_B1, share_B1 = noise.uniform(1) < self.split, noise.uniform(1)
        counted_B1 = (batch.targets_BT != IGNORED).sum(1, keepdim=True).cpu()
        given_B1 = torch.where(is_split_B1, share_B1 * counted_B1, 0).long()
        return canvas.open_BT & (canvas.open_BT.cumsum(1) > given_B1)

    def loss(self, model: LM, inputs: Noised) -> Tensor:
        open_BT1, t_B = inputs.open_BT[:, :, None], inputs.t_B
        clean_BTW = embedded(model, inputs.text_BT)
        start_BTW = clean_BTW + self.chain.first_std * inputs.start_BTW
        x_BTW = torch.where(open_BT1, self.chain.from_start(start_BTW, inputs.noise_BTW, t_B), clean_BTW)
        losses: list[Tensor] = []
        predicted_BTW = self.predict(model, x_BTW, t_B, losses)
        target_BTW = torch.where(t_B.view(-1, 1, 1) == 1, clean_BTW, start_BTW)
        errors_B = summed((target_BTW - predicted_BTW).square(), open_BT1) / self.width
        ends_B = summed(start_BTW.square(), open_BT1) / self.width * self.chain.last_alpha_bar
        targets_BT = torch.where(inputs.open_BT, inputs.text_BT, IGNORED)
        loss = (inputs.weights_B * errors_B + ends_B).sum() + rounding_loss(model, start_BTW, targets_BT)
        if losses and model.training:
            loss = loss + sum(losses) * open_BT1.sum()
        if model.training:
            model.parts.times.record(errors_B / open_BT1.sum((1, 2)).clamp(min=1), inputs.rows_B)
        return loss

    def counted(self, batch: Batch, inputs: Rows) -> int:
        # all targets, and not the padding that is noised too
        return int((batch.targets_BT != IGNORED).sum())

    def predict(self, model: LM, x_BTW: Tensor, t_B: Tensor, losses: list[Tensor] | None = None) -> Tensor:
        """Return the predicted x_0, given x_t in the noised positions and the embeddings in the others."""
        parts, blank_BT = model.parts, torch.zeros(x_BTW.shape[:2], dtype=torch.int64, device=x_BTW.device)
        embedded_BTD = parts.up(x_BTW) + parts.time(t_B / self.steps)[:, None]
        embedded_BTD = embedded_BTD.to(model.embedding.dtype)
        sight = Sight(sees_all=True)
        return parts.down(
            model.hidden(blank_BT, losses=losses, sight=sight, embedded_BTD=embedded_BTD)
        ).float()

    # ---- evaluating

    def nats(self, model: LM, batch: Batch, noise: Noise) -> Tensor:
        """Return an upper bound of the negative log-likelihood of each row's counted targets, (B,).

        With e the embeddings of the open tokens w, x̂ what the model predicts for e, and p(x_{t-1} | x_t) =
        q(x_{t-1} | x_t, x̂(x_t)):

            −ln p(w) ≤ KL(q(x_T | e) ‖ N(0, I)) − E ln p(w | x_0)
                       + Σ_{t=1}^T E KL(q(x_{t-1} | x_t, e) ‖ p(x_{t-1} | x_t))

        Each KL of the sum is (SNR(t−1) − SNR(t)) / 2 · ‖e − x̂‖² (2107.00630). Their sum is estimated from `draws` of
        its terms.
        """
        canvas, device = Canvas(batch, self.length, self.length), batch.tokens_BT.device
        text_BT, open_BT = canvas.text_BT.to(device), canvas.open_BT.to(device)
        shape = (self.length, self.width)
        clean_BTW, open_BT1 = embedded(model, text_BT), open_BT[:, :, None]

        start_BTW = clean_BTW + self.chain.first_std * noise.normal(*shape).to(device)
        each_BT = torch.zeros(text_BT.shape, device=device)
        targets_BT = torch.where(open_BT, text_BT, IGNORED)
        rounding_loss(model, start_BTW, targets_BT, each_BT)
        total_B = each_BT.sum(1)
        total_B += self.chain.prior_loss(summed(clean_BTW.square(), open_BT1), open_BT.sum(1) * self.width)
        first_B = noise.spread().double() * self.steps
        for draw in range(self.draws):
            t_B = 1 + ((first_B + draw * self.steps / self.draws) % self.steps).long().to(device)
            x_BTW = self.chain.from_clean(clean_BTW, noise.normal(*shape).to(device), t_B)
            x_BTW = torch.where(open_BT1, x_BTW, clean_BTW)
            squared_B = summed((clean_BTW - self.guess(model, x_BTW, t_B)).square(), open_BT1)
            total_B += self.chain.loss(squared_B, t_B) * (self.steps / self.draws)
        return total_B

    def guess(self, model: LM, x_BTW: Tensor, t_B: Tensor) -> Tensor:
        """Return the predicted embeddings, clamped."""
        clean_BTW = self.chain.clean(self.predict(model, x_BTW, t_B), x_BTW, t_B)
        if self.clamp == "none":
            return clean_BTW
        pull_BTW, precision_B11 = clean_BTW, torch.ones_like(x_BTW[:, :1, :1])
        if self.clamp == "soft":
            seen_BTW, certain_B11 = self.chain.evidence(x_BTW, t_B)
            pull_BTW, precision_B11 = pull_BTW + seen_BTW, precision_B11 + certain_B11
        all_VW = embedded(model, torch.arange(model.vocab_size, device=x_BTW.device))
        # row by row, because the probabilities of all tokens take memory
        rows = zip(pull_BTW, precision_B11)
        return torch.stack([rounded(*row, all_VW, soft=self.clamp == "soft") for row in rows])

    # ---- generating

    def generate(
        self,
        model: LM,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        sampling: Sampling,
        stream: Callable[[str], None] | None = None,
    ) -> list[str]:
        return denoised(self, model, tokenizer, prompts, sampling, stream)


def rounding_loss(model: LM, start_BTW: Tensor, targets_BT: Tensor, each_BT: Tensor | None = None) -> Tensor:
    """Return the summed negative log-likelihood of tokens, given x_0."""
    return head_loss(model, for_head(model, start_BTW), targets_BT, each_BT=each_BT)


def summed(x_BTW: Tensor, open_BT1: Tensor) -> Tensor:
    """Return each row's sum over the open tokens, (B,)."""
    return torch.where(open_BT1, x_BTW, 0).sum((1, 2))
