"""`train.ema`: an exponential moving average of the parameters, which is evaluated in place of the trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The exponential moving average of a model's parameters, in their own precision, fp32.

    It starts as the parameters' current values, and step n (from 1) moves it to

        average_n = d_n average_(n-1) + (1 - d_n) parameters_n,    d_n = min(decay, (1 + n) / (10 + n))

    The warm-up of d is that of TensorFlow's `ExponentialMovingAverage(num_updates=n)`, which the code of MDLM
    (2406.07524) also uses: initial values lose their weight within a few steps, however large `decay` is. Since d
    depends on the step alone, the average has no other state. Buffers aren't averaged.

    Args:
        decay: the weight of the previous average after the warm-up, between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.params = [own_part(param) for param in model.parameters()]
        self.averages = [param.detach().clone() for param in self.params]
        self.is_sharded = any(hasattr(param, "to_local") for param in model.parameters())

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))

    def update(self, step: int) -> None:
        """Include the parameters that step `step` (from 1) has led to."""
        get_ema_multi_avg_fn(self.decay_at(step))(
            self.averages, [param.detach() for param in self.params], step
        )

    def restart(self) -> None:
        """Set the average to the parameters' current values."""
        for average, param in zip(self.averages, self.params, strict=True):
            average.copy_(param.detach())

    def exchange(self) -> None:
        """Exchange the values of the parameters and of the average, without copying them unless they are sharded."""
        for i, param in enumerate(self.params):
            if self.is_sharded:  # a shard is a part of a larger storage
                values = param.detach().clone()
                param.detach().copy_(self.averages[i])
                self.averages[i].copy_(values)
            else:
                param.data, self.averages[i] = self.averages[i], param.data


def own_part(param: nn.Parameter) -> Tensor:
    """Return a parameter, or the part of a sharded one that this process has."""
    return param.to_local() if hasattr(param, "to_local") else param


@contextmanager
def averaged(average: Average | None) -> Iterator[None]:
    """Give the model the averaged parameters in the body; None changes nothing."""
    if average is None:
        yield
        return
    average.exchange()
    try:
        yield
    finally:
        average.exchange()
