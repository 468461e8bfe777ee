"""Several processes that train one model: which rows each has, and how they add up, agree, and fail together.

Every process takes the same steps with its own rows of the batch. Numbers that decide what happens next are exchanged
before anything large is, so that a process that has failed can report it where the others would wait for it:

    process 0   … gradient ── exchange ── sum of gradients ── update …
    process 1   … out of memory ─ report ┘       both try again with half the rows

With one process, every method returns its argument, and nothing is imported, sent or copied.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.training import memory
from minllm.training.launched import Place, is_first_to_print

T = TypeVar("T")


BUCKET = 1 << 23
"""The number of gradients that are added up in one message."""
NUMBERS = 3
"""How many numbers a process sends in an exchange, besides its state."""

FINE, OUT_OF_MEMORY, REFUSED, BROKEN = range(4)
"""The states that a process reports in an exchange."""
CONNECTION_ERRORS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
)
"""In the error messages of torch.distributed after another process has died."""
ENDED = "Another process of this run has ended, or the connection to it was lost."


class FailedElsewhere(Exception):
    """Another process has failed or died. It prints what went wrong; this one only has to end too.

    code: the exit code
    """

    def __init__(self, code: int):
        super().__init__("another process of this run has failed")
        self.code = code


class OutOfMemoryElsewhere(memory.OutOfMemory):
    """Memory ran out in another process."""


@dataclass(frozen=True)
class Processes:
    """All processes of a run, as one of them sees the others."""

    place: Place = field(default_factory=Place)
    share_parameters: bool = False
    """Whether each has a part of the parameters. One that fails may then leave the others waiting for its part."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder, prints, and decides."""
        return self.place.rank == 0

    @property
    def are_several(self) -> bool:
        return self.place.size > 1

    def rows(self, count: int) -> range:
        """Return this process's share of a batch of `count` rows. UserError if the shares aren't equal."""
        share, rest = divmod(count, self.place.size)
        if rest:
            larger = (share + 1) * self.place.size
            raise UserError(
                f"train.batch_size={count} can't be shared equally by {self.place.size} processes: set a multiple of"
                f" {self.place.size}, such as train.batch_size={larger}."
            )
        return range(self.place.rank * share, (self.place.rank + 1) * share)

    # ---- numbers and values that all agree on

    def exchange(self, *numbers: float, state: int = FINE) -> list[list[float]]:
        """Return the numbers of all processes, by rank.

        Raises:
            OutOfMemoryElsewhere: another process ran out of memory and will try again.
            FailedElsewhere: another process has failed or died.
        """
        own = [*map(float, numbers)] + [0.0] * (NUMBERS - len(numbers))
        if not self.are_several:
            return [own]
        everyone = torch.zeros(self.place.size, NUMBERS + 1, dtype=torch.float64)
        sent = torch.tensor([[state, *own]], dtype=torch.float64)
        with connected():
            dist.all_gather([*everyone.split(1)], sent)
        if state == FINE:
            refuse_failures(int(everyone[:, 0].max()))
        return everyone[:, 1:].tolist()

    def total(self, number: int) -> int:
        """Return the sum over all processes."""
        return int(sum(numbers[0] for numbers in self.exchange(number)))

    def any_signal(self, signal: int | None) -> int | None:
        """Return the signal that any of the processes has received, or None."""
        return int(max(numbers[0] for numbers in self.exchange(signal or 0))) or None

    def agreed(self, value: T) -> T:
        """Return the first process's value, which JSON must be able to express."""
        if not self.are_several:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = int(self.exchange(len(text))[0][0])
        if not self.is_first:
            text = torch.empty(length, dtype=torch.uint8)
        with connected():
            dist.broadcast(text, 0)
        return json.loads(bytes(text.tolist()).decode())

    def first_per_machine(self, act: Callable[[], T]) -> T:
        """Return what `act` returns. The others of each machine call it after its first, when files are ready."""
        if self.place.local_rank:
            self.exchange()
        result = act()
        if not self.place.local_rank:
            self.exchange()
        return result

    # ---- failing together

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """If the body fails in one process, end the others too: they exit with the same code and print nothing."""
        if not self.are_several:
            yield
            return
        try:
            yield
            self.exchange()  # the others wait for the first, which may fail to write its summary
        except Exception as error:
            if is_connection_error(error) and is_first_to_print(ENDED):
                print(ENDED, file=sys.stderr)
            if isinstance(error, FailedElsewhere) or is_connection_error(error):
                raise SystemExit(getattr(error, "code", 1)) from None
            if (
                not self.share_parameters
            ):  # otherwise they may wait for a part of the parameters, until this one ends
                self.report(REFUSED if isinstance(error, UserError) else BROKEN)
            raise

    def report(self, state: int) -> None:
        """Report this process's failure where the others exchange numbers next."""
        with contextlib.suppress(FailedElsewhere, OutOfMemoryElsewhere):
            self.exchange(state=state)

    # ---- sums

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        if not self.are_several or not tensors:
            return
        flats = [(alike, flattened(alike)) for alike in by_type(tensors)]
        self.exchange()  # whatever needs memory has succeeded
        for alike, flat in flats:
            with connected():
                dist.all_reduce(flat)
            unflatten(flat, alike)

    def sum_of(self, x: Tensor) -> Tensor:
        """Return the sum over all processes; its gradient is the sum of theirs."""
        # tensors without values are those of one process, which counts what the model costs
        return Sum.apply(x, self) if self.are_several and not x.is_meta else x

    def add_up_gradients(self, model: nn.Module, loss: Tensor) -> None:
        """Replace the gradients, and the loss, by their sums over all processes, in place.

        A parameter that has a gradient in one process gets one in all. Sharded gradients are sums already.
        """
        if not self.are_several:
            return
        self.exchange()
        params = [p for p in model.parameters() if not is_sharded(p)]
        has_gradient = torch.tensor([p.grad is not None for p in params], dtype=torch.uint8)
        with connected():
            dist.all_reduce(has_gradient, dist.ReduceOp.MAX)
        for p, has in zip(params, has_gradient.tolist()):
            if has and p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in params if p.grad is not None]
        flats = [(bucket, flattened(bucket)) for bucket in buckets([*gradients, loss])]
        self.exchange()  # whatever needs memory has succeeded
        with connected():
            sent = [dist.all_reduce(flat, async_op=True) for _, flat in flats]
        for (bucket, flat), work in zip(flats, sent):
            with connected():
                work.wait()
            unflatten(flat, bucket)

    def synchronise(self, model: nn.Module) -> None:
        """Give every process the first one's weights and buffers, and make modules count over all processes."""
        if not self.are_several:
            return
        self.exchange()
        for tensor in (*model.parameters(), *model.buffers()):
            with connected():
                dist.broadcast(tensor.detach(), 0)
        for module in model.modules():
            if hasattr(module, "sum_over_processes"):
                module.sum_over_processes = self.sum_of


ALONE = Processes()


class Sum(torch.autograd.Function):
    """The sum over processes, which a process that has failed may never ask for."""

    @staticmethod
    def forward(ctx, x: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        total = x.detach().clone()
        processes.add_up([total])
        return total

    @staticmethod
    def backward(ctx, dtotal: Tensor) -> tuple[Tensor, None]:
        dx = dtotal.clone()
        ctx.processes.add_up([dx])
        return dx, None


def refuse_failures(worst: int) -> None:
    if worst == OUT_OF_MEMORY:
        raise OutOfMemoryElsewhere("Memory ran out in another process.")
    if worst != FINE:
        raise FailedElsewhere(2 if worst == REFUSED else 1)


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Raise FailedElsewhere if the connection to another process is lost in the body."""
    try:
        yield
    except RuntimeError as error:
        if is_connection_error(error):
            raise FailedElsewhere(1) from error
        raise


def is_connection_error(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, means that the connection to another process was closed."""
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in CONNECTION_ERRORS):
        return True
    return error is not None and is_connection_error(error.__cause__)


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is distributed over the processes (a DTensor, of which each has a shard)."""
    return hasattr(tensor, "full_tensor")


def full(tensor: Tensor) -> Tensor:
    """Return a tensor that isn't distributed; all processes must ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor, which every process has whole, in shards like those of another."""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the parts of a flattened tensor to the tensors that it was made of."""
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the tensors in lists of one type each, which have the same order in all processes."""
    types = dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors)
    return [[t for t in tensors if (t.dtype, t.device) == one] for one in types]


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in lists of one type and about `BUCKET` numbers each."""
    for alike in by_type(tensors):
        bucket, size = [], 0
        for tensor in alike:
            bucket.append(tensor)
            size += tensor.numel()
            if size >= BUCKET:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket
