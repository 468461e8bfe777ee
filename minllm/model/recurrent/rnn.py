"""A plain recurrent network, which computes token after token: slow, and able to track any finite state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.model.context import Context, Layer
from minllm.model.parameter import Linear
from minllm.model.precision import in_fp32
from minllm.model.recurrent.carry import Carry, recalled, remember
from minllm.schema.options import Count


class RNN(nn.Module):
    """h_t = tanh(U h_(t-1) + W x_t + b): "Finding Structure in Time" (Elman, 1990).

    Its state passes through a matrix and a nonlinearity at each token. Diagonal and linear recurrences, which can be
    computed for all tokens at once, can't express all that it does (2404.08819). torch.compile unrolls the loop over
    tokens, which takes minutes for rows of hundreds of them: train.compile=false doesn't.

    Args:
        width: size of the hidden state, F; null means D.
    """

    def __init__(self, dim: int, layer: Layer, *, width: Count | None):
        super().__init__()
        self.width = width or dim
        self.new = Linear(dim, self.width, stream="reads", bias=True)
        self.again = Linear(self.width, self.width, stream="within")
        self.out = Linear(self.width, dim, stream="writes", gain=layer.branches**-0.5)

    def forward(self, x_BTD: Tensor, ctx: Context, state: Carry | None = None) -> Tensor:
        new_BTF, begins_BT = self.new(x_BTD), ctx.begins()
        h_BF, _ = recalled(state)
        h_BF = new_BTF.new_zeros(len(new_BTF), self.width, dtype=torch.float32) if h_BF is None else h_BF
        keep_BT1 = None if begins_BT is None else (~begins_BT).expand(new_BTF.shape[:2])[..., None]
        h_BTF = in_fp32(self._states, new_BTF, h_BF, keep_BT1)
        remember(state, h_BTF[:, -1])
        return self.out(h_BTF.to(new_BTF.dtype))

    def _states(self, new_BTF: Tensor, h_BF: Tensor, keep_BT1: Tensor | None) -> Tensor:
        """Return the state after each token, computed in fp32."""
        states = []
        for t, new_BF in enumerate(new_BTF.unbind(1)):
            if keep_BT1 is not None:
                h_BF = torch.where(keep_BT1[:, t], h_BF, 0)
            h_BF = torch.tanh(new_BF + F.linear(h_BF, self.again.weight))
            states.append(h_BF)
        return torch.stack(states, dim=1)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Carry:
        return Carry(torch.zeros(batch, self.width, device=device))
