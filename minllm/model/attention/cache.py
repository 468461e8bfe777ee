"""Key/value caches of attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cache(
    widths: Sequence[int], heads: int, batch: int, max_len: int, reach: int | None, *, device, dtype
) -> Cache:
    """Return an empty cache of one tensor (B, G, S, width) for each of `widths`.

    It is a ring buffer if queries see at most the last `reach` keys, including their own, and `max_len` is larger.
    """
    is_ring = reach is not None and reach < max_len
    length = reach if is_ring else max_len
    shapes = [(batch, heads, length, width) for width in widths]
    return (Ring if is_ring else Cache)([torch.zeros(s, device=device, dtype=dtype) for s in shapes])


class Cache:
    """A cache of all tokens, preallocated for `max_len` tokens."""

    def __init__(self, held: list[Tensor]):
        self.held = held

    def extend(self, new: Sequence[Tensor], past: int) -> tuple[list[Tensor], int]:
        """Append T tokens after the `past` ones. Return all cached tokens, and the index of the first of them."""
        end = past + new[0].shape[2]
        for held, added in zip(self.held, new):
            held[:, :, past:end] = added
        return [held[:, :, :end] for held in self.held], 0

    def tensors(self) -> list[Tensor]:
        return self.held


class Ring(Cache):
    """A ring buffer of the last W tokens: token t is in slot t mod W, where it replaces token t − W.

    W = 4, after 6 tokens:    slot   0  1  2  3
                              token  4  5  2  3
    """

    def extend(self, new: Sequence[Tensor], past: int) -> tuple[list[Tensor], int]:
        W, T, device = self.held[0].shape[2], new[0].shape[2], new[0].device
        new = [added.to(held.dtype) for held, added in zip(self.held, new)]  # autocast may have another dtype
        first = max(0, past - W + 1)  # the next query sees no earlier key
        earlier = torch.arange(first, past, device=device) % W
        in_order = [
            torch.cat([held.index_select(2, earlier), added], dim=2) for held, added in zip(self.held, new)
        ]
        stays = min(T, W)
        slots = torch.arange(past + T - stays, past + T, device=device) % W
        for held, added in zip(self.held, new):
            held.index_copy_(2, slots, added[:, :, T - stays :])
        return in_order, first
