"""How much memory a run will hold at most, found out before it holds any.

Two training steps and an evaluation are taken by the run's own code on fake tensors, which have a shape, a device and a
storage, and no memory. A dispatch mode follows their storages: when one is made its bytes are added, when it dies they
are taken away, and the most that there were at once is the peak. On a GPU that is all.

On a CPU the peak is the whole process's: what it holds already, the tensors, and what was measured on Linux and stands
in the constants below, holes that malloc can't fill and what libraries keep for themselves.

Compiled steps are predicted as eager ones: a run that compiles begins with these. A sample that is written between
steps, one row by one token at a time, isn't looked at, nor are kernels for GPUs, in whose place the scans are taken.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._ops import OpOverload
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minllm.data.batches import Batch
from minllm.model.build import build_model
from minllm.model.mlp.moe import MoE
from minllm.model.mlp.router import ExpertChoice
from minllm.model.steps import before_step
from minllm.schema.building import build
from minllm.tokenizer import Tokenizer
from minllm.training import machine, memory
from minllm.training.checkpoints import Progress
from minllm.training.evaluation import evaluate
from minllm.training.loop import Run, accumulate, update

aten, prim = torch.ops.aten, torch.ops.prim

FRAGMENTED = 1.4
"""What a step's tensors take on the heap, for each of their bytes; 1.15 to 1.45 were measured, 1.7 with bf16 scans.

Small objects come to lie where a tensor was, and the next one of its size doesn't fit there any more."""

FIRST_STEP = 30 << 20
"""The bytes of what a process meets in its first step: code that is read in, buffers of libraries."""

PRODUCT, MOST_PRODUCTS = 600 << 10, 1024
"""The bytes that oneDNN keeps for each shape of a bf16 product that it has met, and how many shapes it keeps.

Experts read another number of rows each time: within a few steps they come to the most."""

PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}


def predicted_peak(
    cfg: DictConfig,
    rows: int | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    precision: machine.Precision | None = None,
) -> int:
    """Return the bytes that training `cfg` holds at most in this process, as `memory.peak_bytes` will say.

    Nothing is computed, no thread begins, and nothing stays behind. What depends on values is assumed: every target
    counts, and each expert is met by the same share of the tokens.

    Args:
        cfg: a configuration, as `minllm.compose` returns it.
        rows: those of a micro-batch; None takes what `cfg` says.
        tokenizer: the tokenizer, if it is at hand already.
        precision: what `auto` has chosen; None chooses as the run would, and that computes a few products.

    Raises:
        UserError: the configuration describes no model, or its device isn't there.
    """
    settings = build(cfg.train)
    device = machine.choose_device(settings.device)
    if precision is None:
        precision, _ = machine.choose_precision(settings.precision, device)
    rows = rows or settings.micro_batch_size or settings.batch_size
    tokenizer = tokenizer or build(cfg.tokenizer)
    imagined = Imagined(device)
    try:
        with FakeTensorMode(), imagined:
            lasting, fresh = train(cfg, tokenizer, rows, device, precision, imagined)
    finally:
        FakeTensorMode.cache_clear()
    if device.type != "cpu":
        return imagined.peak_bytes
    memory.trim()
    tensors = lasting + round(FRAGMENTED * (imagined.peak_bytes - lasting))
    products = len(imagined.products)
    if products:
        products += fresh * math.ceil(settings.batch_size / rows) * (settings.steps or MOST_PRODUCTS)
    kept = PRODUCT * min(products, MOST_PRODUCTS)
    return memory.resident_bytes() + FIRST_STEP + tensors + kept


def warm_up() -> None:
    """Import what a prediction needs besides this module, so that processes forked from here have it at once."""
    import torch._dynamo  # noqa: F401, which the first fake tensor would import


def train(
    cfg: DictConfig,
    tokenizer: Tokenizer,
    rows: int,
    device: torch.device,
    precision: machine.Precision,
    storages: LiveStorages,
) -> tuple[int, int]:
    """Take two steps and evaluate, as a run does, while `storages` are followed.

    Returns the bytes that stay from step to step, weights and what the optimizer remembers, and how many of a
    micro-batch's products have shapes that no other has.
    """
    run = run_of(cfg, tokenizer, rows, device, precision)
    batch = batch_of(cfg)
    # Adam's state appears at the end of the first step
    for _ in range(2):
        run.optimizer.zero_grad()
        before_step(run.model)
        lasting = storages.bytes
        accumulate(run, run.objective.loss, batch, rows)
        update(run, lr=cfg.optim.lr)
    evaluate(run.model, run.objective, Few([few_rows(batch, rows)]), device, precision)
    return lasting, sum(fresh_products(module, batch) for module in run.model.modules())


def run_of(
    cfg: DictConfig, tokenizer: Tokenizer, rows: int, device: torch.device, precision: machine.Precision
) -> Run:
    """Return a run of which only the steps are taken, of two micro-batches at most: a third adds nothing."""
    settings = build(cfg.train)
    with device:  # fake tensors can't be moved to one in place
        model = build_model(cfg, tokenizer)
    return Run(
        seed=cfg.seed,
        settings=replace(settings, batch_size=min(settings.batch_size, 2 * rows)),
        folder=None,
        logger=None,
        model=model.train(),
        objective=build(cfg.objective),
        optimizer=build(cfg.optim, model),
        schedule=None,
        budget=None,
        progress=Progress(),
        train_batches=None,
        validation=None,
        floor_bpb=None,
        sample=None,
        device=device,
        precision=precision,
        tokens_per_step=settings.batch_size * cfg.data.seq_len,
    )


def batch_of(cfg: DictConfig) -> Batch:
    tokens_BT = torch.zeros(cfg.train.batch_size, cfg.data.seq_len, dtype=torch.int64)
    segments_BT = torch.zeros_like(tokens_BT) if cfg.data.packing == "pack" else None
    return Batch(tokens_BT, torch.zeros_like(tokens_BT), segments_BT)


def few_rows(batch: Batch, rows: int) -> Batch:
    """Return the most that is evaluated at a time; evaluation has no segments."""
    return Batch(batch.tokens_BT[:rows], batch.targets_BT[:rows], None)


class Few(list):
    """Batches to evaluate, with the sizes that losses are divided by."""

    tokens = bytes = 1


def fresh_products(module: nn.Module, batch: Batch) -> int:
    """Return how many products a module makes of another number of rows each time: those with experts' matrices."""
    if not isinstance(module, MoE):
        return 0
    # where experts choose, all read the same number
    if isinstance(module.router, ExpertChoice) and batch.segments_BT is None:
        return 0
    # forwards, and the gradients of both factors
    return 3 * sum(param.ndim == 2 for param in module.experts.parameters())


class LiveStorages(TorchDispatchMode):
    """While it is entered, it follows the storages of a device's tensors: their bytes now, and the most there were.

    A storage counts once, however many views share it, from when it is made to when its last tensor dies.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.bytes = self.peak_bytes = 0
        self.sizes: dict[int, int] = {}  # of each storage that lives, by its address
        self.watches: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = self.run(func, args, kwargs or {})
        if isinstance(result, Tensor):
            self.follow(result)
        elif isinstance(result, (tuple, list)):
            for one in tree_leaves(result):
                if isinstance(one, Tensor):
                    self.follow(one)
        return result

    def run(self, func: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address not in self.sizes:
            # fake tensors say where they would be, and their storages that they are nowhere
            device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
            if device.type != self.device.type:
                return
            self.sizes[address] = 0
            self.watches[address] = weakref.ref(storage, lambda _: self.drop(address))
        self.bytes += size - self.sizes[address]  # which may have been resized
        self.sizes[address] = size
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def drop(self, address: int) -> None:
        self.bytes -= self.sizes.pop(address)
        del self.watches[address]


class Imagined(LiveStorages):
    """The same for fake tensors, with an answer where one is asked for its value.

    products: the shapes of bf16 products that have been met
    inside: what custom operations hold at most while they run, besides what they are given
    """

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.products: set[tuple] = set()
        self.inside: dict[tuple, int] = {}

    def run(self, func: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
        if func is prim.device.default:  # most of what is asked, and this is the quickest answer
            return args[0].fake_device
        if func is aten._local_scalar_dense.default:
            return an_answer(args[0].dtype)
        if func in PRODUCTS and args[-1].dtype == torch.bfloat16:
            self.products.add(key_of(func, args))
        if made := OPDEFS.get(func._name):
            return self.run_custom(func, made._init_fn, args)
        return func(*args, **kwargs)

    def run_custom(self, func: OpOverload, inside: Callable, args: tuple) -> Any:
        """Take the steps inside a custom operation, since its fake shows only what comes out.

        A scan has one for each token: what they hold at most is remembered, for the next time with the same shapes.
        """
        key, before, peak = key_of(func, args), self.bytes, self.peak_bytes
        if key in self.inside:
            self.peak_bytes = max(peak, before + self.inside[key])
            return func(*args)
        self.peak_bytes = before
        with self:
            result = inside(*args)
        self.inside[key] = self.peak_bytes - before
        self.peak_bytes = max(peak, self.peak_bytes)
        return result


def an_answer(dtype: torch.dtype) -> bool | int | float:
    """Return what a number is taken to be: no alarm, more targets than there are, a finite loss."""
    if dtype == torch.bool:
        return False
    return 1.0 if dtype.is_floating_point else sys.maxsize >> 1


def key_of(func: OpOverload, args: tuple) -> tuple:
    return func, *(tuple(one.shape) if isinstance(one, Tensor) else one for one in args)
