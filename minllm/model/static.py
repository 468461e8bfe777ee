"""Static steps: decoding passes whose shapes and addresses never change, so that a CUDA graph can replay them.

A usual pass reads the number of earlier tokens from the host, and caches return as many keys. A static step has that
number on the device, and caches return all their slots; those that aren't written yet are padding, which no token sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minllm.model.attention.mask import Full
from minllm.model.context import PAD, Context, Position
from minllm.model.stack import positions_in

if TYPE_CHECKING:
    from minllm.model.lm import LM, ModelState


def has_static_steps(model: LM) -> bool:
    """Whether all modules that decode can take static steps.

    minllm's own can, and torch's containers, but for those with `static_steps = False`. Others must say so with
    `static_steps = True` in their own class: what they return depends only on tensors; they don't read `Context.past`,
    or a tensor's values on the host; and they update the tensors of their state in place. Attention masks are held to
    the same.
    """
    own = (part for name, part in model.named_children() if name not in ("encoder", "parts"))
    modules = [model, *(module for part in own for module in part.modules())]
    masks = [module.mask for module in modules if isinstance(getattr(module, "mask", None), Full)]
    return all(_is_static(type(part)) for part in [*modules, *masks])


def _is_static(kind: type) -> bool:
    # not by inheritance, because a class may override what the declaration was about
    declared = vars(kind).get("static_steps")
    return kind.__module__.startswith(("minllm.", "torch.nn.")) if declared is None else declared


class StaticState:
    """A decoding state after its first pass, for static steps: `LM.step` reads one token per row with it.

        slots        0  1  2  3  4  5        for six tokens in all, of which three are read
        segments    -1  0  0 -1 -1 -1        each step writes to the next slot
        positions    0  0  1  2  3  4        if the row's segment continues to the end

    Args:
        state: the state of the first pass. It can't be used by itself any more.
        rows: the number of rows, B.
        causal: `Context.causal` of the first pass.
    """

    def __init__(self, state: ModelState, rows: int, device: torch.device, *, causal: bool = True):
        earlier_BS, S = state.segments_BS, state.max_len
        if earlier_BS is None:
            earlier_BS = torch.zeros(rows, state.past, dtype=torch.int64, device=device)
        self.branches, self.memory_segments_BS = state.branches, state.memory_segments_BS
        self.causal = causal
        self.slot_1 = torch.tensor([state.past - 1], device=device)
        self.segment_B1 = earlier_BS[:, -1:].clone()
        following_BS = self.segment_B1.expand(-1, S - state.past)
        self.segments_BS = torch.cat([earlier_BS, torch.full_like(following_BS, PAD)], dim=1)
        self.positions_BS = positions_in(S, torch.cat([earlier_BS, following_BS], dim=1), device)

    def end(self, is_over: list[bool]) -> None:
        """Treat further tokens of these rows as padding."""
        over_B1 = torch.tensor(is_over, device=self.segment_B1.device)[:, None]
        self.segment_B1.masked_fill_(over_B1, PAD)

    def advance(self, position: Position) -> Context:
        """Return the context of the next step."""
        self.slot_1 += 1
        self.segments_BS.index_copy_(1, self.slot_1, self.segment_B1)
        positions_B1 = self.positions_BS.index_select(1, self.slot_1)
        return Context(
            # learned positions end where a row does
            positions_BT=positions_B1.masked_fill(self.segment_B1 == PAD, 0),
            positions_BS=self.positions_BS,
            position=position,
            segments_BT=self.segment_B1,
            segments_BS=self.segments_BS,
            past=self.positions_BS.shape[1] - 1,
            slot_1=self.slot_1,
            causal=self.causal,
            memory_segments_BS=self.memory_segments_BS,
        )

    def tensors(self) -> list[Tensor]:
        """Return the tensors of the mixers' states."""
        return [t for states in self.branches for state in states.values() for t in state.tensors()]
