"""Attention masks: which of the keys allowed by causality and segments a query may see (`model/attn/mask`).

Queries downwards, keys to the right:

    Window(3)      Strided(3)     Dilated(3, 2)  Blocks(3, 1)
    #              #              #              #
    ##             ##             .#             ##
    ###            ###            #.#            ###
    .###           ####           .#.#           #..#
    ..###          .####          #.#.#          #..##
    ...###         ..####         .#.#.#         #..###
    ....###        #..####        ..#.#.#        #.....#
    .....###       .#..####       ...#.#.#       #.....##
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minllm.schema.options import Count, Natural


@dataclass(frozen=True, kw_only=True)
class Full:
    """Every key (1706.03762); the base class of all masks. Masks with equal settings are equal."""

    @property
    def reach(self) -> int | None:
        """How many keys back a query may see, including its own; a cache needs no more. None means all."""
        return None

    def hides(self, length: int, first: int = 0) -> bool:
        """Whether any of the `length` tokens from `first` on is hidden from a later one."""
        return False

    def visible(self, q_BT1: Tensor, k_B1S: Tensor) -> Tensor:
        """Return whether the queries at positions `q_BT1` see the keys at `k_B1S`, bool (B, T, S)."""
        return torch.ones_like(q_BT1 - k_B1S, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Window(Full):
    """The last `window` keys, including the query's own, as in Mistral (2310.06825) and Longformer (2004.05150)."""

    window: Count

    @property
    def reach(self) -> int:
        return self.window

    def hides(self, length: int, first: int = 0) -> bool:
        return length > self.window

    def visible(self, q_BT1: Tensor, k_B1S: Tensor) -> Tensor:
        return (q_BT1 - k_B1S).abs() < self.window


@dataclass(frozen=True, kw_only=True)
class Strided(Full):
    """The last `stride` keys, and every `stride`-th before them: Sparse Transformers (1904.10509), both in one head."""

    stride: Count

    def hides(self, length: int, first: int = 0) -> bool:
        return length > self.stride

    def visible(self, q_BT1: Tensor, k_B1S: Tensor) -> Tensor:
        distance_BTS = (q_BT1 - k_B1S).abs()
        return (distance_BTS < self.stride) | (distance_BTS % self.stride == 0)


@dataclass(frozen=True, kw_only=True)
class Dilated(Full):
    """Every `dilation`-th key back, `window` of them: Longformer's dilated window (2004.05150)."""

    window: Count
    dilation: Count

    @property
    def reach(self) -> int:
        return (self.window - 1) * self.dilation + 1

    def hides(self, length: int, first: int = 0) -> bool:
        return length > (1 if self.dilation > 1 else self.window)

    def visible(self, q_BT1: Tensor, k_B1S: Tensor) -> Tensor:
        distance_BTS = (q_BT1 - k_B1S).abs()
        return (distance_BTS < self.reach) & (distance_BTS % self.dilation == 0)


@dataclass(frozen=True, kw_only=True)
class Blocks(Full):
    """The keys of the query's own block, and the first `n_global` of all: BigBird's fixed parts (2007.14062)."""

    size: Count
    n_global: Natural

    @property
    def reach(self) -> int | None:
        return None if self.n_global else self.size

    def hides(self, length: int, first: int = 0) -> bool:
        # blocks are aligned to segments: within a segment, any two neighbours may be in different blocks
        return length > (1 if first else self.size)

    def visible(self, q_BT1: Tensor, k_B1S: Tensor) -> Tensor:
        return (q_BT1 // self.size == k_B1S // self.size) | (k_B1S < self.n_global)
