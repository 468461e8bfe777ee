"""What all attentions share: from queries, keys and values to mixed values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context
from minllm.model.mask import Full
from minllm.model.mixers.softmax import attend
from minllm.model.parameter import constant, parameter
from minllm.model.position import Position
from minllm.options import BelowOne, Positive

Weights = Literal["softmax", "sigmoid"]


class Core(nn.Module):
    """Weigh the keys that each query may see by their scores, and add up their values.

    Args:
        n_heads: query heads, H.
        n_maps: how many of them make one head of attention; positions bias these alike.
        mask: which keys a query may see (`model/attn/mask`).
        scale: what products of queries and keys are multiplied by; None means 1/√K.
        softcap: bound the scores softly, c·tanh(score / c), as Gemma 2 does (2408.00118); None doesn't.
        sinks: each head has a learned score that takes weight and gives no value, as in gpt-oss (2309.17453).
        weights: softmax, or sigmoid(score − ln(number of visible keys)) (2409.04431).
        dropout: share of the weights that is dropped in training.
    """

    def __init__(
        self,
        n_heads: int,
        *,
        n_maps: int = 1,
        mask: Callable[[], Full],
        scale: Positive | None = None,
        softcap: Positive | None = None,
        sinks: bool = False,
        weights: Weights = "softmax",
        dropout: BelowOne = 0.0,
    ):
        super().__init__()
        if sinks and weights == "sigmoid":
            raise UserError(
                "A sink takes weight from the other keys of a softmax, and sigmoids share none: leave out sinks=true"
                " or weights=sigmoid."
            )
        self.n_heads, self.n_maps = n_heads // n_maps, n_maps
        self.mask, self.weights, self.dropout = mask(), weights, dropout
        self.scale, self.softcap = scale, softcap
        self.sinks_H = parameter(n_heads, kind="vector", draw=constant(0)) if sinks else None
        self.is_plain = softcap is None and not sinks and weights == "softmax"

    def forward(
        self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, ctx: Context, position: Position, first: int = 0
    ) -> Tensor:
        """Return the mixed values, (B, H, T, width of a value); the keys are those of the tokens from `first` on."""
        dropout = self.dropout if self.training else 0.0
        bias_BHTS = position.bias(self.n_heads, ctx, first)
        if bias_BHTS is not None and self.n_maps > 1:
            bias_BHTS = bias_BHTS.repeat(1, self.n_maps, 1, 1)
        if not self.is_plain:
            return self._by_scores(q_BHTK, k_BGSK, v_BGSK, bias_BHTS, ctx.visible(self.mask, first, True))
        seen = ctx.visible(self.mask, first, explicit=bias_BHTS is not None)
        if bias_BHTS is not None:
            key = ("bias", id(position), q_BHTK.shape[1], self.mask, first, q_BHTK.dtype)
            seen = ctx.once(key, lambda: bias_BHTS.to(q_BHTK.dtype).masked_fill(~seen, -torch.inf))
        return attend(q_BHTK, k_BGSK, v_BGSK, seen, causal=ctx.causal, scale=self.scale, dropout=dropout)

    def _by_scores(
        self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, bias_BHTS: Tensor | None, visible_BHTS: Tensor
    ) -> Tensor:
        """The same in plain products, for what has no fused kernel: B·H·T·S scores stand in memory."""
        (B, H, T, K), G = q_BHTK.shape, k_BGSK.shape[1]
        q_BHTK = q_BHTK * (K**-0.5 if self.scale is None else self.scale)
        # the query heads of a group are stacked as more rows of one product
        scores_BHTS = (q_BHTK.reshape(B, G, -1, K) @ k_BGSK.mT).view(B, H, T, -1)
        if self.softcap is not None:
            scores_BHTS = self.softcap * torch.tanh(scores_BHTS / self.softcap)
        if bias_BHTS is not None:
            scores_BHTS = scores_BHTS + bias_BHTS
        scores_BHTS = scores_BHTS.masked_fill(~visible_BHTS, -torch.inf)
        p_BHTS = self._weights(scores_BHTS, visible_BHTS)
        if self.dropout:
            p_BHTS = F.dropout(p_BHTS, self.dropout, self.training)
        return (p_BHTS.reshape(B, G, -1, p_BHTS.shape[-1]).to(v_BGSK.dtype) @ v_BGSK).view(B, H, T, -1)

    def _weights(self, scores_BHTS: Tensor, visible_BHTS: Tensor) -> Tensor:
        if self.weights == "sigmoid":
            scores_BHTS = scores_BHTS - visible_BHTS.sum(-1, keepdim=True).log()
        if self.sinks_H is None:
            return scores_BHTS.softmax(-1) if self.weights == "softmax" else scores_BHTS.sigmoid()
        B, H, T, _ = scores_BHTS.shape
        sinks_BHT1 = self.sinks_H[:, None, None].expand(B, H, T, 1)
        return torch.cat([scores_BHTS, sinks_BHT1], dim=-1).softmax(-1)[..., :-1]
