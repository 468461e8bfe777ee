"""A branch: norm → module → norm → residual write → norm. A layer is a sequence of branches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.model.context import Context, Layer, State
from minllm.model.contract import check_state, made, made_norm
from minllm.model.norm import Norms
from minllm.model.residual import Plain
from minllm.schema.options import factory


@factory
def nothing(dim: int, layer: Layer) -> nn.Module | None:
    """No branch: the layout's entry is left out (`model/mlp=none`)."""


class Branch(nn.Module):
    """One branch of a layer, or several joined by a plus, which read the same input and whose outputs are added.

    stream ──┬─ read ─ before ─┬─ attn ─┬─ (+) ─ after ─┐
             │                 └─ mlp ──┘               │
             └──────────────────────────────────────── write ─ norm ─► stream

    Parallel modules have separate input norms unless the norms are `shared` and none of the modules
    `norms_its_input`; one that does has no input norm.
    """

    factor = 1.0
    """Factor of what is written, which CompleteP sets (`minllm.model.transfer`)."""

    def __init__(
        self,
        words: Mapping[str, nn.Module],
        dim: int,
        layer: Layer,
        norms: Norms,
        residual: Callable[[int, Layer], Plain],
        dropout: float,
    ):
        super().__init__()
        self.words = nn.ModuleDict(words)
        normed = [word for word, module in words.items() if not getattr(module, "norms_its_input", False)]
        self.each_has_norm = (
            norms.before and len(words) > 1 and (len(normed) < len(words) or not norms.shared)
        )
        if self.each_has_norm:
            self.before = nn.ModuleDict({word: made_norm(norms, dim) for word in normed})
        else:
            self.before = made_norm(norms, dim) if norms.before and normed else None
        self.after = made_norm(norms, dim) if norms.after else None
        self.residual = made("model.residual", residual, dim=dim, layer=layer)
        self.norm = made_norm(norms, dim) if norms.residual else None
        self.dropout = dropout

    def forward(self, stream: Tensor, ctx: Context, states: Mapping[str, State] = {}) -> Tensor:
        x_BTD = self.residual.read(stream, ctx)
        if self.before is not None and not self.each_has_norm:
            x_BTD = self.before(x_BTD)
        outputs = []
        for word, module in self.words.items():
            own_BTD = self.before[word](x_BTD) if self.each_has_norm and word in self.before else x_BTD
            if reads_one_way(module) and not ctx.causal:
                outputs.append(both_ways(module, own_BTD, ctx))
            else:
                outputs.append(module(own_BTD, ctx, states[word]) if word in states else module(own_BTD, ctx))
        y_BTD = functools.reduce(torch.add, outputs)
        if self.after is not None:
            y_BTD = self.after(y_BTD)
        if self.dropout:
            y_BTD = F.dropout(y_BTD, self.dropout, self.training)
        if self.factor != 1:
            y_BTD = self.factor * y_BTD
        stream = self.residual.write(stream, y_BTD, ctx)
        return stream if self.norm is None else self.norm(stream)

    def init_states(
        self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, State]:
        """Return an empty state for each mixer; MLPs have none."""
        states = {}
        for word, module in self.words.items():
            if hasattr(module, "init_state"):
                state = module.init_state(batch, max_len, device=device, dtype=dtype)
                states[word] = check_state(module, state)
        return states


def reads_one_way(module: nn.Module) -> bool:
    """Whether a module mixes tokens, but can't let them see later ones."""
    mixes = hasattr(module, "init_state") and not getattr(module, "reads_memory", False)
    return mixes and not getattr(module, "bidirectional", False)


def both_ways(module: nn.Module, x_BTD: Tensor, ctx: Context) -> Tensor:
    """Return the sum of a mixer's outputs for each segment and for the segment reversed, with the same weights.

    Caduceus (2403.03234) makes state space models bidirectional in this way.
    """
    # positions restart in each segment, so those of reversed segments are the same
    ctx = ctx.once("one way", lambda: replace(ctx, causal=True, _once={}))
    places_BT = ctx.once("reversed", lambda: reversed_places(ctx))
    places_BTD = places_BT[..., None].expand(len(x_BTD), -1, x_BTD.shape[2])
    backwards_BTD = module(x_BTD.gather(1, places_BTD), ctx)
    return module(x_BTD, ctx) + backwards_BTD.gather(1, places_BTD)


def reversed_places(ctx: Context) -> Tensor:
    """Return the place of each token after every segment has been reversed, (B or 1, T)."""
    T = ctx.positions_BT.shape[1]
    place_T = torch.arange(T, device=ctx.positions_BT.device)
    first_BT = place_T - ctx.positions_BT
    begins_next_BT = (ctx.positions_BT == 0).roll(-1, dims=1)
    begins_next_BT[:, -1] = True
    last_BT = torch.where(begins_next_BT, place_T, T).flip(1).cummin(1).values.flip(1)
    return first_BT + last_BT - place_T
