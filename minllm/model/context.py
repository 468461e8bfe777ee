"""What every branch of a model may look at and nobody owns, and what a mixer remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from minllm.model.norm import Norms
    from minllm.model.position import Position

PAD = -1
"""The segment of padding: nothing reads it and no loss counts it."""


@dataclass(frozen=True)
class Layer:
    """Where a branch stands: layer `index` of `count`, in a model that has `branches` branches in all.

    `norms` makes the norms that a module wants inside itself, of the model's own kind. `share` is how wide a module is
    that isn't told its width, as a part of what is usual: experts share the width of one MLP.
    """

    index: int
    count: int
    branches: int
    norms: Norms
    share: float = 1.0


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
    losses: list[Tensor] = field(default_factory=list)
    """Auxiliary losses that branches want added to the objective's, in nats a token."""
    _once: dict[object, object] = field(default_factory=dict)

    def once(self, key, make):
        """Return `make()`, computed for the first branch that asks and shared with all others of this pass."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def visible(self) -> Tensor | None:
        """Return which keys each query may see, bool (B or 1, 1, T, S); None where `is_causal` says it all."""
        return self.once("visible", self._visible)

    def _visible(self) -> Tensor | None:
        T = self.positions_BT.shape[1]
        if self.segments_BS is None:
            if self.past == 0 or T == 1:
                return None
            return _causal(T, self.past, self.positions_BT.device)[None, None]
        same_BTS = self.segments_BT[:, :, None] == self.segments_BS[:, None, :]
        if self.causal and T > 1:
            same_BTS = same_BTS & _causal(T, self.past, same_BTS.device)
        return same_BTS[:, None]


class State(Protocol):
    """All that a mixer remembers between decoding steps."""

    def tensors(self) -> list[Tensor]:
        """Return what takes the memory, so that it can be counted."""


def _causal(T: int, past: int, device: torch.device) -> Tensor:
    return torch.ones(T, past + T, dtype=torch.bool, device=device).tril(past)
