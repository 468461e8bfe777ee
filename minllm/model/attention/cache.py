"""What attention remembers: the keys and values, or whatever stands for them, of earlier tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cache(
    widths: Sequence[int], heads: int, batch: int, max_len: int, reach: int | None, *, device, dtype
) -> Cache:
    """Return an empty cache of one tensor (B, G, S, width) for each of `widths`.

    It is a ring where no query looks further back than the `reach` last keys, its own included, and more may come.
    """
    is_ring = reach is not None and reach < max_len
    length = reach if is_ring else max_len
    shapes = [(batch, heads, length, width) for width in widths]
    return (Ring if is_ring else Cache)([torch.zeros(s, device=device, dtype=dtype) for s in shapes])


class Cache:
    """All tokens so far, in place for as many as may come."""

    def __init__(self, held: list[Tensor]):
        self.held = held

    def extend(self, new: Sequence[Tensor], past: int) -> tuple[list[Tensor], int]:
        """Write T tokens behind the `past` ones. Return what is remembered, and which token is the first of these."""
        end = past + new[0].shape[2]
        for held, one in zip(self.held, new):
            held[:, :, past:end] = one
        return [held[:, :, :end] for held in self.held], 0

    def tensors(self) -> list[Tensor]:
        return self.held


class Ring(Cache):
    """The last W tokens: token t stands in slot t mod W, where the one that is W older stood.

    W = 4, after 6 tokens:    slot   0  1  2  3
                              token  4  5  2  3
    """

    def extend(self, new: Sequence[Tensor], past: int) -> tuple[list[Tensor], int]:
        W, T, device = self.held[0].shape[2], new[0].shape[2], new[0].device
        new = [one.to(held.dtype) for held, one in zip(self.held, new)]  # autocast computes in another one
        first = max(0, past - W + 1)  # the next query sees no earlier one
        earlier = torch.arange(first, past, device=device) % W
        in_order = [
            torch.cat([held.index_select(2, earlier), one], dim=2) for held, one in zip(self.held, new)
        ]
        stays = min(T, W)
        slots = torch.arange(past + T - stays, past + T, device=device) % W
        for held, one in zip(self.held, new):
            held.index_copy_(2, slots, one[:, :, T - stays :])
        return in_order, first
