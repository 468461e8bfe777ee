"""What all branches of a model share in a forward pass, and the interfaces of positions and states."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from minllm.model.attention.mask import Full
    from minllm.model.kernels.flex import Sees
    from minllm.model.norm import Norms

PAD = -1
"""The segment of padding: no token sees it and it doesn't count in the loss."""


@dataclass(frozen=True)
class Layer:
    """Where a branch is: layer `index` of `count`, in a model with `branches` branches in total.

    `norms` makes norms of the model's kind for use inside a module. `share` scales the default width of a module:
    experts share the width of one MLP. `place` is the index of the branch in its layer.
    """

    index: int
    count: int
    branches: int
    norms: Norms
    share: float = 1.0
    place: int = 0


@dataclass(frozen=True)
class Sight:
    """What tokens may see of their segment. By default, those up to their own position.

    sees_all: whether tokens see their whole segment
    order_BS: int64, (B or 1, S): a token sees the tokens of its own order, and those of a lower and even order. Tokens
        of an odd order are thus hidden from all others. None leaves it to positions.

            0 0 0 2 4 6        the first three see each other, the others all before them
            0 0 2 2 4 4        blocks of two
            -1 -1 1 1 0 0 2 2  the same twice: noised blocks, which see the clean ones before theirs

    positions_BS: int64, (B or 1, S): positions, if they aren't those of the tokens in their segments
    """

    sees_all: bool = False
    order_BS: Tensor | None = None
    positions_BS: Tensor | None = None


PAST = Sight()


@dataclass
class Context:
    """One forward pass, as its branches see it.

    `segments` is the one rule for packing, padding and batched generation: a token sees only its own segment.
    None means the fast path, one document per row. S = `past` + T is the number of keys after this pass.

        segments     0  0  0  1  1 -1        two documents and padding in one row
        positions    0  1  2  0  1  0        they restart in each segment
    """

    positions_BT: Tensor
    """Positions of the tokens in their segments; shape (1, T) if all rows agree."""
    positions_BS: Tensor
    """Positions of all tokens so far, including this pass."""
    position: Position
    """How positions are encoded (`model/pos`)."""
    segments_BT: Tensor | None = None
    segments_BS: Tensor | None = None
    """Segments of all tokens so far, including this pass."""
    counted_BT: Tensor | None = None
    """The tokens that count in the loss, in statistics and in auxiliary losses, bool; None means all."""
    past: int = 0
    """Number of tokens in earlier passes; in a static step, the number of keys but one."""
    slot_1: Tensor | None = None
    """Which of the keys is the token of a static step, int64 (1,); None in all other passes. See `StaticState`."""
    causal: bool = True
    """Whether tokens see no later ones, unless `order_BS` decides."""
    order_BS: Tensor | None = None
    """What each token so far may see; see `Sight`."""
    x0_BTD: Tensor | None = None
    """The embedded tokens, the input of the first layer."""
    memory_BSD: Tensor | None = None
    """The input of cross-attention."""
    memory_segments_BS: Tensor | None = None
    """The segment that each position of the memory belongs to; None means every token sees all of it."""
    losses: list[Tensor] = field(default_factory=list)
    """Auxiliary losses of branches, in nats per token, which are added to the objective."""
    _once: dict[object, object] = field(default_factory=dict)

    def once(self, key, make):
        """Return `make()`, computed once per pass and shared by all branches."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def copy(self) -> Context:
        """Return a context that further branches may add to without changing this one."""
        shared = {key: made.copy() if isinstance(made, Context) else made for key, made in self._once.items()}
        return replace(self, losses=[*self.losses], _once=shared)

    def begins(self) -> Tensor | None:
        """Return which tokens begin a segment, bool (B, T); None if there is one segment, from position 0 on."""
        return None if self.segments_BT is None else self.once("begins", lambda: self.positions_BT == 0)

    def starts(self) -> Tensor | None:
        """Return the index in this pass where each token's segment begins, (B, T); negative if in an earlier pass.

        None if there is one segment.
        """
        if self.segments_BT is None:
            return None
        return self.once("starts", self._starts)

    def _starts(self) -> Tensor:
        T = self.positions_BT.shape[1]
        return torch.arange(T, device=self.positions_BT.device) - self.positions_BT

    def visible(self, mask: Full, first: int = 0, explicit: bool = False) -> Tensor | None:
        """Return which of the keys from `first` on each query may see, bool (B or 1, 1, T, S).

        Returns None if no mask is needed and it needn't be `explicit`: a single query sees all keys, several queries
        see the keys up to their own positions.
        """
        return self.once(("visible", mask, first, explicit), lambda: self._visible(mask, first, explicit))

    def is_masked(self, mask: Full, first: int = 0) -> bool:
        """Whether some query sees other keys than all, or, if there are several queries, all up to its own position."""
        T, earlier = self.positions_BT.shape[1], self.past - first
        simple = self.order_BS is None and (T == 1 or earlier == 0 or not self.causal)
        return self.segments_BS is not None or mask.hides(earlier + T, first) or not simple

    def _visible(self, mask: Full, first: int, explicit: bool) -> Tensor | None:
        T, earlier = self.positions_BT.shape[1], self.past - first
        # the keys of a static step may be any part of a segment
        hides = self.slot_1 is not None or mask.hides(earlier + T, first)
        if not explicit and not self.is_masked(mask, first):
            return None
        visible_BTS = torch.ones(1, T, earlier + T, dtype=torch.bool, device=self.positions_BT.device)
        if self.order_BS is not None:
            q_BT1, k_B1S = self.order_BS[:, self.past :, None], self.order_BS[:, None, first:]
            visible_BTS = (k_B1S == q_BT1) | ((k_B1S < q_BT1) & (k_B1S % 2 == 0))
        elif self.causal:
            visible_BTS = visible_BTS.tril(earlier)
        if hides:
            keys_B1S = self.positions_BS[:, None, first:]
            visible_BTS = visible_BTS & mask.visible(self.positions_BT[:, :, None], keys_B1S)
        if self.segments_BS is not None:
            visible_BTS = visible_BTS & (self.segments_BT[:, :, None] == self.segments_BS[:, None, first:])
        return visible_BTS[:, None]

    def sees(self, mask: Full) -> Sees:
        """Return `visible` as a function of single queries and keys of this pass, for kernels; not for later passes."""
        causal, hides = self.causal, mask.hides(self.positions_BT.shape[1])
        position, order, segment = (_reader(x) for x in (self.positions_BT, self.order_BS, self.segments_BT))

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            seen = q >= k if causal and order is None else q >= 0
            if order is not None:
                of_q, of_k = order(b, q), order(b, k)
                seen = (of_k == of_q) | ((of_k < of_q) & (of_k % 2 == 0))
            if hides:
                seen = seen & mask.visible(position(b, q), position(b, k))
            return seen if segment is None else seen & (segment(b, q) == segment(b, k))

        return sees

    def mask_rows(self) -> int | None:
        """Return the number of rows whose masks differ; None if all rows have the same."""
        held = (self.positions_BT, self.segments_BT, self.order_BS)
        rows = max(len(x) for x in held if x is not None)
        return None if rows == 1 else rows

    def memory_visible(self) -> Tensor | None:
        """Return which positions of the memory each token may read, bool (B, 1, T, S); None means all."""
        if self.memory_segments_BS is None:
            return None
        return self.once("memory", self._memory_visible)

    def _memory_visible(self) -> Tensor:
        own_BT = self.positions_BT * 0 if self.segments_BT is None else self.segments_BT
        return (own_BT[:, :, None] == self.memory_segments_BS[:, None])[:, None]


def _reader(x_BT: Tensor | None) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return a function of a row and a time that reads x there; x may have a single row for all."""
    if x_BT is None:
        return None
    x_T = x_BT[0]
    return (lambda b, t: x_T[t]) if len(x_BT) == 1 else (lambda b, t: x_BT[b, t])


class Position(nn.Module):
    """No position encoding (NoPE, 2305.19466), and the base class of the others.

    Positions are encoded in the embedding (`embed`), in attention's queries and keys (`rotate`) or in its scores
    (`bias`).
    """

    max_positions: int | None = None
    """Number of positions; None if unlimited."""

    def __init__(self, dim: int):
        super().__init__()

    def check(self, model: nn.Module) -> None:
        """Raise `UserError` if this position encoding would have no effect in the model."""

    def readers(self, model: nn.Module) -> list[nn.Module]:
        """Return the attention modules that use this encoding: their own, or the model's if they have none."""
        own = None if model.position is self else self
        attentions = [module for module in model.modules() if hasattr(module, "rotated_dim")]
        return [attention for attention in attentions if getattr(attention, "position", None) is own]

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return x_BTD

    def rotate(self, x_BHTK: Tensor, ctx: Context) -> Tensor:
        return x_BHTK

    def bias(self, n_heads: int, ctx: Context, first: int) -> Tensor | None:
        """Return the bias added to the scores of the keys from `first` on, (B or 1, H, T, S)."""
        return None


class State(Protocol):
    """A mixer's state between decoding steps.

    Those of minllm's mixers are updated in place after the first pass, which static steps require.
    """

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the state, so that their size can be counted."""
