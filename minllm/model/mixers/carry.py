"""What recurrent mixers remember between decoding steps: as much after a million tokens as after one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minllm.model.mixers.conv import Tail


@dataclass
class Carry:
    """A hidden state, which is always fp32, and the last inputs of the convolution before it."""

    hidden: Tensor
    tail: Tail | None = None

    def tensors(self) -> list[Tensor]:
        return [self.hidden, *([] if self.tail is None else self.tail.tensors())]
