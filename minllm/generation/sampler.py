"""Sampling the next token from the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from minllm.model.seed import generator
from minllm.schema.options import Count, Fraction, Natural, NonNegative


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The options under `sample`.

    Args:
        temperature: below 1 is more conservative, above 1 more random; 0 always takes the most likely token.
        top_k: sample from the k most likely tokens only; null means all.
        top_p: sample from the most likely tokens that together have this probability (1904.09751).
        min_p: sample from tokens at least this fraction as likely as the most likely one (2407.01082).
        max_new_tokens: maximum number of tokens to generate.
        seed: random seed; the same seed gives the same text.
        steps: passes in which the tokens of a block are unmasked or denoised; null means one for each token. Fewer are
            faster.
        unmask: which tokens stay in each pass: the most probable ones, or some at random.
        trace: show the text after every so many passes; 0 means only at the end.
        candidates: texts written for each prompt, of which the one most similar to the others is returned.

    `steps` and `trace` are for objectives that unmask or denoise tokens (`masked`, `blocks`, `diffuseq`), `unmask` is
    for those that unmask. `diffuseq` writes `candidates`, and doesn't draw tokens: the first four options don't affect
    it.
    """

    temperature: NonNegative
    top_k: Count | None
    top_p: Fraction
    min_p: Fraction
    max_new_tokens: Count
    seed: Natural
    steps: Count | None = None
    unmask: Literal["random", "confident"] = "random"
    trace: Natural = 0
    candidates: Count = 1

    def generator(self, place: int, name: str) -> torch.Generator:
        """Return the random numbers of the prompt at a place in the list of prompts: they depend on its name alone."""
        return generator(self.seed, name)

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """Return the distribution that the next token is drawn from, (B, V)."""
        if self.temperature == 0:
            return F.one_hot(logits_BV.argmax(-1), logits_BV.shape[-1]).float()
        p_BV = (logits_BV.float() / self.temperature).softmax(-1)
        if self.top_k is None and self.top_p == 1 and self.min_p == 0:
            return p_BV
        least_B1 = self.min_p * p_BV.amax(-1, keepdim=True)
        if self.top_k is not None and self.top_k < p_BV.shape[-1]:
            least_B1 = torch.maximum(least_B1, p_BV.topk(self.top_k).values[:, -1:])
        if self.top_p < 1:
            sorted_BV = p_BV.sort(dim=-1, descending=True).values
            # keep the most likely token, and each next one while those before it haven't reached top_p
            stays_BV = sorted_BV.cumsum(-1) - sorted_BV < self.top_p
            stays_BV[:, 0] = True
            least_B1 = torch.maximum(
                least_B1, sorted_BV.masked_fill(~stays_BV, torch.inf).amin(-1, keepdim=True)
            )
        p_BV = p_BV * (p_BV >= least_B1)
        return p_BV / p_BV.sum(-1, keepdim=True)

    def draw(self, logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
        """Return one token per row: where its uniform number in [0, 1) falls in the row's distribution."""
        cumulative_BV = self.probabilities(logits_BV).cumsum(-1, dtype=torch.float64)
        # scaled by the last sum, which may differ from 1 because of rounding
        places_B1 = uniforms_B[:, None] * cumulative_BV[:, -1:]
        tokens_B1 = torch.searchsorted(cumulative_BV, places_B1, right=True)
        return tokens_B1[:, 0].clamp(max=logits_BV.shape[-1] - 1)


@dataclass(frozen=True, kw_only=True)
class SeedOfEach(Sampling):
    """Sampling in which each prompt has a seed of its own, so that equal prompts are continued differently.

    Args:
        seeds: of the prompts, in their order; they replace `seed`.
    """

    seeds: Sequence[int]

    def generator(self, place: int, name: str) -> torch.Generator:
        return generator(self.seeds[place], name)
