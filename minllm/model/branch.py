"""A branch: norm → module → norm → residual write → norm. A layer is a short sentence of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Layer, State
from minllm.model.norm import Norms
from minllm.model.residual import Plain


def nothing(dim: int, layer: Layer) -> None:
    """No branch: a layout's word that names this stands for nothing (`model/mlp=none`)."""


class Branch(nn.Module):
    """One word of a layer's sentence, or several joined by a plus: these read the same input and add up.

    stream ──┬─ read ─ before ─┬─ attn ─┬─ (+) ─ after ─┐
             │                 └─ mlp ──┘               │
             └──────────────────────────────────────── write ─ norm ─► stream

    Unless the norms are `shared`, each of several words has a norm of its own before it.
    """

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
        self.is_shared = norms.shared or len(words) == 1
        self.before = (
            norms.make(dim, norms.before)
            if self.is_shared
            else nn.ModuleDict({word: norms.make(dim, norms.before) for word in words})
        )
        self.after = norms.make(dim, norms.after)
        self.residual = residual(dim, layer)
        self.norm = norms.make(dim, norms.residual)
        self.dropout = dropout

    def forward(self, stream: Tensor, ctx: Context, states: Mapping[str, State] = {}) -> Tensor:
        read_BTD = self.residual.read(stream, ctx)
        x_BTD = self.before(read_BTD) if self.is_shared else None
        outputs = []
        for word, module in self.words.items():
            own_BTD = x_BTD if self.is_shared else self.before[word](read_BTD)
            outputs.append(module(own_BTD, ctx, *([states[word]] if word in states else [])))
        y_BTD = self.after(functools.reduce(torch.add, outputs))
        if self.dropout:
            y_BTD = F.dropout(y_BTD, self.dropout, self.training)
        return self.norm(self.residual.write(stream, y_BTD, ctx))

    def init_states(
        self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, State]:
        """Return an empty state for each word that is a mixer; an MLP remembers nothing."""
        states = {}
        for word, module in self.words.items():
            if "state" not in inspect.signature(module.forward).parameters:
                continue
            if not hasattr(module, "init_state"):
                name = type(module).__name__
                raise UserError(
                    f"model.{word} can't generate: {name} takes a state, and has no init_state to make one."
                )
            states[word] = module.init_state(batch, max_len, device=device, dtype=dtype)
        return states
