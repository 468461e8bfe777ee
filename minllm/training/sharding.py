"""`train.parallel=fsdp`: parameters, gradients and optimizer state in shards, one for each process (FSDP2).

Each mixer and each MLP is gathered when it is called, and freed afterwards; the rest of the model, such as embeddings
and norms, is gathered for the whole step. Evaluation and sampling gather everything, because processes then make
different numbers of passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from minllm.data.batches import Rows
from minllm.model.context import Context
from minllm.model.lm import LM
from minllm.objective import Objective
from minllm.training.averaging import Average, own_part
from minllm.training.parallel import shard_of

T = TypeVar("T")


class Root(nn.Module):
    """A model and its objective as one module, so that parameters stay gathered from the embedding to the loss."""

    def __init__(self, model: LM, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, inputs: Rows) -> Tensor:
        return self.objective.loss(self.model, inputs)

    def act(self, act: Callable[[], T]) -> T:
        return act()


class Sharded:
    """The objective of a sharded model: the same, except that its loss gathers the parameters that it needs."""

    def __init__(self, model: LM, objective: Objective, device: torch.device, size: int):
        self.objective = objective
        self.root = Root(model, objective)
        self.units = shard(self.root, model, device, size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def loss(self, model: LM, inputs: Rows) -> Tensor:
        return self.root(inputs)

    def gathered(self, act: Callable[[], T]) -> T:
        """Return what `act` returns while this process has all parameters."""

        def with_everything() -> T:
            for unit in self.units:
                unit.set_reshard_after_forward(False, recurse=False)
                unit.unshard()
            try:
                return act()
            finally:
                for unit in self.units:
                    unit.set_reshard_after_forward(True, recurse=False)
                    unit.reshard()

        try:
            return self.root.act(with_everything)
        finally:
            self.root.reshard()


def shard(root: Root, model: LM, device: torch.device, size: int) -> list[nn.Module]:
    """Shard the parameters of a model, on its processes' devices; return the modules that are gathered one by one.

    Gradients are sums over processes. Parameters without dimensions can't be sharded, and stay whole.
    """
    mesh = init_device_mesh(device.type, (size,))
    roles = {name: p.role for name, p in model.named_parameters()}
    whole = {p for p in model.parameters() if p.ndim == 0}
    for p in whole:  # `fully_shard` moves the others
        p.data = p.data.to(device)
    stacks = [model] if model.encoder is None else [model, model.encoder]
    layers = [layer for stack in stacks for layer in (*stack.layers, *stack.ahead)]
    units = [word for layer in layers for branch in layer.values() for word in branch.words.values()]
    units = [unit for unit in units if any(p not in whole for p in unit.parameters())]
    for module in (*units, root):
        fully_shard(module, mesh=mesh, ignored_params=whole)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo can't divide
    for unit in units:
        # before and after the hook with which `fully_shard` gathers the parameters
        unit.register_forward_pre_hook(hide, prepend=True)
        unit.register_forward_pre_hook(show)
    register_fsdp_forward_method(root, "act")
    for name, p in model.named_parameters():
        p.role = roles[name]
    return units


class Hidden:
    """A context that `fully_shard` doesn't look into: it would copy it, and what a module adds to the copy is lost."""

    def __init__(self, ctx: Context):
        self.ctx = ctx


def hide(unit: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(Hidden(arg) if isinstance(arg, Context) else arg for arg in args)


def show(unit: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.ctx if isinstance(arg, Hidden) else arg for arg in args)


def shard_average(average: Average, model: nn.Module) -> Average:
    """Return the average of a sharded model, given that of the same model before it was sharded."""
    shards = [shard_of(whole, p) for whole, p in zip(average.averages, model.parameters(), strict=True)]
    sharded = Average(model, average.decay)
    sharded.averages = [own_part(shard).to(p.device) for shard, p in zip(shards, model.parameters())]
    return sharded
