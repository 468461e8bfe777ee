"""What every branch of a model may look at and nobody owns, and what a mixer remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from minllm.model.attention.mask import Full
    from minllm.model.norm import Norms

PAD = -1
"""The segment of padding: nothing reads it and no loss counts it."""


@dataclass(frozen=True)
class Layer:
    """Where a branch stands: layer `index` of `count`, in a model that has `branches` branches in all.

    `norms` makes the norms that a module wants inside itself, of the model's own kind. `share` is how wide a module is
    that isn't told its width, as a part of what is usual: experts share the width of one MLP. `place` is which of its
    layer's branches it belongs to, from 0.
    """

    index: int
    count: int
    branches: int
    norms: Norms
    share: float = 1.0
    place: int = 0


@dataclass
class Context:
    """One forward pass, as its branches see it.

    `segments` is the one rule for packing, padding and batched generation: a token sees its own segment only.
    None means the fast path, one document a row. S = `past` + T keys have been seen when this pass ends.

        segments     0  0  0  1  1 -1        two documents and padding in one row
        positions    0  1  2  0  1  0        they start anew in each segment
    """

    positions_BT: Tensor
    """Places of the tokens in their segment; shape (1, T) where all rows agree."""
    positions_BS: Tensor
    """The places of all tokens so far, this pass's included."""
    position: Position
    """How places enter the computation (`model/pos`)."""
    segments_BT: Tensor | None = None
    segments_BS: Tensor | None = None
    """The segments of all tokens so far, this pass's included."""
    counted_BT: Tensor | None = None
    """The tokens that a loss counts, bool; None counts all. Statistics and auxiliary losses leave out the others."""
    past: int = 0
    """Tokens that the states hold from earlier passes."""
    causal: bool = True
    x0_BTD: Tensor | None = None
    """The embedded tokens, as the first layer reads them."""
    memory_BSD: Tensor | None = None
    """What cross-attention reads."""
    memory_segments_BS: Tensor | None = None
    """The segment that each piece of the memory is for; None shows all of it to every token."""
    losses: list[Tensor] = field(default_factory=list)
    """Auxiliary losses that branches want added to the objective's, in nats a token."""
    _once: dict[object, object] = field(default_factory=dict)

    def once(self, key, make):
        """Return `make()`, computed for the first branch that asks and shared with all others of this pass."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def begins(self) -> Tensor | None:
        """Return which tokens begin a segment, bool (B, T); None where there is one segment, which began at place 0."""
        return None if self.segments_BT is None else self.once("begins", lambda: self.positions_BT == 0)

    def starts(self) -> Tensor | None:
        """Return the place in this pass where each token's segment begins, (B, T); below 0 is an earlier pass.

        None where there is one segment.
        """
        if self.segments_BT is None:
            return None
        return self.once("starts", self._starts)

    def _starts(self) -> Tensor:
        T = self.positions_BT.shape[1]
        return torch.arange(T, device=self.positions_BT.device) - self.positions_BT

    def visible(self, mask: Full, first: int = 0, explicit: bool = False) -> Tensor | None:
        """Return which of the keys from `first` on each query may see, bool (B or 1, 1, T, S).

        Unless it must be `explicit`, None stands for what needs no mask: all keys for a single query, those up to its
        own place for several.
        """
        return self.once(("visible", mask, first, explicit), lambda: self._visible(mask, first, explicit))

    def _visible(self, mask: Full, first: int, explicit: bool) -> Tensor | None:
        T, earlier = self.positions_BT.shape[1], self.past - first
        hides = mask.hides(earlier + T, first)
        if self.segments_BS is None and not hides and not explicit and (T == 1 or earlier == 0):
            return None
        visible_BTS = torch.ones(1, T, earlier + T, dtype=torch.bool, device=self.positions_BT.device)
        if self.causal:
            visible_BTS = visible_BTS.tril(earlier)
        if hides:
            keys_B1S = self.positions_BS[:, None, first:]
            visible_BTS = visible_BTS & mask.visible(self.positions_BT[:, :, None], keys_B1S)
        if self.segments_BS is not None:
            visible_BTS = visible_BTS & (self.segments_BT[:, :, None] == self.segments_BS[:, None, first:])
        return visible_BTS[:, None]

    def memory_visible(self) -> Tensor | None:
        """Return which pieces of the memory each token may read, bool (B, 1, T, S); None where that's all of it."""
        if self.memory_segments_BS is None:
            return None
        return self.once("memory", self._memory_visible)

    def _memory_visible(self) -> Tensor:
        own_BT = self.positions_BT * 0 if self.segments_BT is None else self.segments_BT
        return (own_BT[:, :, None] == self.memory_segments_BS[:, None])[:, None]


class Position(nn.Module):
    """No positions at all (NoPE, 2305.19466), and what other kinds inherit from.

    Positions enter at the embedding (`embed`), at attention's queries and keys (`rotate`), or at its scores (`bias`).
    """

    max_positions: int | None = None
    """How many positions there are; None if unlimited."""

    def __init__(self, dim: int):
        super().__init__()

    def check(self, model: nn.Module) -> None:
        """Raise `UserError` if these positions can do nothing in the model that has them."""

    def readers(self, model: nn.Module) -> list[nn.Module]:
        """Return the attentions that have these positions: their own, or the model's where they have none."""
        own = None if model.position is self else self
        attentions = [module for module in model.modules() if hasattr(module, "rotated_dim")]
        return [one for one in attentions if getattr(one, "position", None) is own]

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return x_BTD

    def rotate(self, x_BHTK: Tensor, ctx: Context) -> Tensor:
        return x_BHTK

    def bias(self, n_heads: int, ctx: Context, first: int) -> Tensor | None:
        """Return what is added to the scores of the keys from `first` on, (B or 1, H, T, S)."""
        return None


class State(Protocol):
    """All that a mixer remembers between decoding steps."""

    def tensors(self) -> list[Tensor]:
        """Return what takes the memory, so that it can be counted."""
