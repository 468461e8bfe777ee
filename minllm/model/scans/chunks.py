"""Time split into chunks: matrix products within them, and a short recurrence between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minllm.model.scans.linear import linear_scan


class Chunks:
    """T tokens in C chunks of L, the last one padded, with the visibility that follows from segments.

        chunk            c = 0        c = 1
        tokens        0  1  2  3   4  5  6  7      L = 4
        segments      0  0  0  0   0  0  1  1
        reads         1  1  1  1   1  1  .  .      reads the state from before its chunk
        stays         1  1  1  1   .  .  1  1      is in the state after its chunk
        goes_on          1            .            the state from before continues to the next chunk

    Args:
        n_tokens: T.
        length: L; reduced to T if that is less.
        starts_BT: where each token's segment begins (`Context.starts`); None if all tokens see all earlier ones.
    """

    def __init__(self, n_tokens: int, length: int, starts_BT: Tensor | None, device: torch.device):
        L = self.length = min(length, n_tokens)
        self.n_tokens, self.filled = n_tokens, -n_tokens % L
        self.visible = torch.ones(L, L, dtype=torch.bool, device=device).tril()
        self.reads = self.stays = self.goes_on = None
        if starts_BT is not None:
            # padding of the last chunk continues the last token's segment
            starts_BT = torch.cat([starts_BT, starts_BT[:, -1:].expand(-1, self.filled)], dim=1)
            starts_BCL = starts_BT.unflatten(1, (-1, L))
            place_CL = torch.arange(starts_BT.shape[1], device=device).unflatten(0, (-1, L))
            self.visible = self.visible & (place_CL[:, None] >= starts_BCL[..., None])
            self.reads = starts_BCL < place_CL[:, :1]
            self.stays = place_CL >= starts_BCL[..., -1:]
            self.goes_on = self.reads[..., -1]

    def cut(self, x_BT: Tensor) -> Tensor:
        """Return (B, T, H, …) as (B, C, H, L, …), padded with zeros."""
        if self.filled:
            x_BT = F.pad(x_BT, (0, 0) * (x_BT.ndim - 2) + (0, self.filled))
        return x_BT.unflatten(1, (-1, self.length)).transpose(2, 3)

    def join(self, x_BCHL: Tensor) -> Tensor:
        """Return (B, C, H, L, …) as (B, T, H, …)."""
        return x_BCHL.transpose(2, 3).flatten(1, 2)[:, : self.n_tokens]

    def decays(self, log_a_BCHL: Tensor) -> Decays:
        """Return the decays between tokens and chunks if a head decays by `log_a_BCHL` before each token."""
        c_BCHL = log_a_BCHL.cumsum(-1)
        between_BCHLL = c_BCHL[..., None] - c_BCHL[..., None, :]
        return Decays(
            between=between_BCHLL.masked_fill(~self.visible_heads, -torch.inf).exp(),
            from_before=self.only(self.reads, c_BCHL.exp()),
            to_end=self.only(self.stays, (c_BCHL[..., -1:] - c_BCHL).exp()),
            through=self.only(self.goes_on, c_BCHL[..., -1].exp()),
        )

    @property
    def visible_heads(self) -> Tensor:
        """Which tokens of its chunk each token sees, for all heads: (L, L) or (B, C, 1, L, L)."""
        return self.visible if self.visible.ndim == 2 else self.visible[:, :, None]

    def only(self, which_BC: Tensor | None, x_BCH: Tensor) -> Tensor:
        """Return x with zeros outside the chunks, or tokens of chunks, selected by `which_BC`; None means all."""
        if which_BC is None:
            return x_BCH
        which_BCH = which_BC[:, :, None]
        return x_BCH * which_BCH.reshape(*which_BCH.shape, *[1] * (x_BCH.ndim - which_BCH.ndim))


@dataclass
class Decays:
    """Decay factors per head."""

    between: Tensor
    """From one token to another of its chunk, (B, C, H, L, L): rows read, columns write."""
    from_before: Tensor
    """From the state before the chunk to each token, (B, C, H, L)."""
    to_end: Tensor
    """From each token to the chunk's end, (B, C, H, L)."""
    through: Tensor
    """From the state before the chunk to its end, (B, C, H)."""


def between_chunks(decay_BC: Tensor, added_BC: Tensor, state_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the states before each chunk, (B, C, …), and the one after the last, (B, …).

    Args:
        decay_BC: the factor of the state before each chunk.
        added_BC: what each chunk adds.
        state_B: the state before the first chunk; None means 0.
    """
    after_BC = linear_scan(decay_BC, added_BC, state_B)
    first_B = torch.zeros_like(after_BC[:, 0]) if state_B is None else state_B
    return torch.cat([first_B[:, None], after_BC[:, :-1]], dim=1), after_BC[:, -1]
