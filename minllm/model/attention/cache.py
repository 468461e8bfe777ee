"""Key/value caches of attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minllm.model.context import PAD, Context


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

    def extend(self, new: Sequence[Tensor], ctx: Context) -> tuple[list[Tensor], int, Context]:
        """Add the pass's tokens. Return all cached tokens, the index of the first of them, and the context that has
        their positions and segments: that of the pass, unless it is a static step.
        """
        if ctx.slot_1 is not None:
            return self._write(new, ctx.slot_1), 0, ctx
        end = ctx.past + new[0].shape[2]
        for held, added in zip(self.held, new):
            held[:, :, ctx.past : end] = added
        return [held[:, :, :end] for held in self.held], 0, ctx

    def _write(self, new: Sequence[Tensor], slots: Tensor) -> list[Tensor]:
        """Write tokens to slots. Return what all slots contain."""
        for held, added in zip(self.held, new):
            held.index_copy_(2, slots, added.to(held.dtype))  # autocast may have another dtype
        return self.held

    def tensors(self) -> list[Tensor]:
        return self.held


class Ring(Cache):
    """A ring buffer of the last W tokens: token t is in slot t mod W, where it replaces token t − W.

    W = 4, after 6 tokens:    slot   0  1  2  3
                              token  4  5  2  3
    """

    def extend(self, new: Sequence[Tensor], ctx: Context) -> tuple[list[Tensor], int, Context]:
        W, T, past, device = self.held[0].shape[2], new[0].shape[2], ctx.past, new[0].device
        if ctx.slot_1 is not None:
            return self._write(new, ctx.slot_1 % W), 0, ctx.once(("ring", W), lambda: _of_ring(ctx, W))
        new = [added.to(held.dtype) for held, added in zip(self.held, new)]
        first = max(0, past - W + 1)  # the next query sees no earlier key
        earlier = torch.arange(first, past, device=device) % W
        in_order = [
            torch.cat([held.index_select(2, earlier), added], dim=2) for held, added in zip(self.held, new)
        ]
        stays = min(T, W)
        slots = torch.arange(past + T - stays, past + T, device=device) % W
        self._write([added[:, :, T - stays :] for added in new], slots)
        return in_order, first, ctx


def _of_ring(ctx: Context, W: int) -> Context:
    """Return the context of a static step whose keys are those in the slots of a ring buffer, in their order there."""
    back_W = (ctx.slot_1 - torch.arange(W, device=ctx.slot_1.device)) % W
    token_W = ctx.slot_1 - back_W
    held_W = token_W.clamp(min=0)
    segments_BW = ctx.segments_BS[:, held_W].masked_fill(token_W < 0, PAD)
    return replace(
        ctx, positions_BS=ctx.positions_BS[:, held_W], segments_BS=segments_BW, past=W - 1, _once={}
    )
