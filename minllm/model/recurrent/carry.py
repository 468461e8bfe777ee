"""Decoding states of recurrent mixers, whose size doesn't depend on the number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minllm.model.recurrent.conv import Tail


@dataclass
class Carry:
    """A hidden state, always fp32, and the last inputs of the convolution before it."""

    hidden: Tensor
    tail: Tail | None = None

    def tensors(self) -> list[Tensor]:
        return [self.hidden, *([] if self.tail is None else self.tail.tensors())]


def recalled(state: Carry | None) -> tuple[Tensor | None, Tail | None]:
    """Return the hidden state and the convolution's tail, either of which may be None."""
    return (None, None) if state is None else (state.hidden, state.tail)


def remember(state: Carry | None, hidden: Tensor) -> None:
    """Store a hidden state for the next tokens when decoding."""
    if state is not None:
        state.hidden.copy_(hidden)
