"""Predicts the peak memory of a run before it allocates anything.

The run's own code takes two training steps and evaluates once on fake tensors, which have a shape, a device and a
storage but no memory. A dispatch mode tracks their storages: the bytes of each are added when it is created and
subtracted when it is freed, and the peak is the maximum. On a GPU that is the whole prediction.

On a CPU the peak is that of the whole process: what it holds already, the tensors, and the overhead of malloc's
fragmentation and of libraries, for which the constants below were measured on Linux.

Compiled steps are predicted as eager ones, because a compiled run starts with these. Not covered are samples generated
between steps, which take one row and one token at a time, and GPU kernels, in place of which the scans are traced.
"""

from __future__ import annotations

import itertools
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
from minllm.model.stack import set_recompute
from minllm.model.steps import before_step
from minllm.objective.noise import Noise
from minllm.schema.building import build
from minllm.tokenizer import Tokenizer
from minllm.training import machine, memory
from minllm.training.averaging import Average
from minllm.training.checkpoints import Progress
from minllm.training.evaluation import evaluate
from minllm.training.run import Run
from minllm.training.step import accumulate, update

aten, prim = torch.ops.aten, torch.ops.prim

FRAGMENTED = 1.4
"""Heap bytes per byte of a step's tensors; 1.15 to 1.45 were measured, 1.7 with bf16 scans.

Small objects get allocated where a tensor was, so that the next tensor of its size no longer fits there."""

FIRST_STEP = 30 << 20
"""Bytes that a process allocates in its first step for loaded code and library buffers."""

PRODUCT, MOST_PRODUCTS = 600 << 10, 1024
"""Bytes that oneDNN caches for each shape of a bf16 matrix product, and the number of shapes it caches."""

NUMBERS_OF_ROWS = 16
"""Shapes of each product with experts' weights: experts read a different number of rows each time, rounded up."""

PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}


def predicted_peak(
    cfg: DictConfig,
    rows: int | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    precision: machine.Precision | None = None,
) -> int:
    """Return the predicted peak in bytes of training `cfg` in this process, as `memory.peak_bytes` will measure it.

    Nothing is computed, no thread is started, and no memory stays allocated. Where memory depends on values, every
    target is assumed to count, and the tokens to be spread evenly over the experts.

    Args:
        cfg: a configuration, as `minllm.compose` returns it.
        rows: rows per micro-batch; None uses that of `cfg`.
        tokenizer: the tokenizer, if it is already built.
        precision: the resolved precision; None resolves it as the run would, which may time a few matrix products.

    Raises:
        UserError: the configuration is invalid, or its device isn't available.
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
        products += fresh * NUMBERS_OF_ROWS
    kept = PRODUCT * min(products, MOST_PRODUCTS)
    return memory.resident_bytes() + FIRST_STEP + tensors + kept


def warm_up() -> None:
    """Import what a prediction needs besides this module, so that forked processes needn't."""
    import torch._dynamo  # noqa: F401, otherwise imported with the first fake tensor


def train(
    cfg: DictConfig,
    tokenizer: Tokenizer,
    rows: int,
    device: torch.device,
    precision: machine.Precision,
    storages: LiveStorages,
) -> tuple[int, int]:
    """Take two steps and evaluate, as a run does, while `storages` tracks memory.

    Returns the bytes that persist between steps (weights, their average and optimizer state), and the number of matrix
    products whose shapes differ from one micro-batch to the next.
    """
    run = run_of(cfg, tokenizer, rows, device, precision)
    batch = batch_of(cfg)
    noise = Noise(0, 0, range(len(batch.tokens_BT)), len(batch.tokens_BT))
    inputs = run.objective.inputs(batch, noise, run.model)
    # Adam's state appears at the end of the first step
    for _ in range(2):
        run.optimizer.zero_grad()
        before_step(run.model)
        lasting = storages.bytes
        accumulate(run, run.objective.loss, inputs, 1, rows)
        update(run, lr=cfg.optim.lr)
    evaluate(run.model, run.objective, Few(few_rows(batch, rows)), device, precision)
    return lasting, len(set().union(*(fresh_products(module, batch) for module in run.model.modules())))


def run_of(
    cfg: DictConfig, tokenizer: Tokenizer, rows: int, device: torch.device, precision: machine.Precision
) -> Run:
    """Return a run for its steps only, with at most two micro-batches: a third wouldn't raise the peak."""
    settings = build(cfg.train)
    with device:  # fake tensors can't be moved to a device in place
        model = build_model(cfg, tokenizer)
        average = Average(model, settings.ema) if settings.ema else None
    set_recompute(model, settings.recompute)
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
        average=average,
    )


def batch_of(cfg: DictConfig) -> Batch:
    tokens_BT = torch.zeros(cfg.train.batch_size, cfg.data.seq_len, dtype=torch.int64)
    segments_BT = torch.zeros_like(tokens_BT) if cfg.data.packing == "pack" else None
    return Batch(tokens_BT, torch.zeros_like(tokens_BT), segments_BT)


def few_rows(batch: Batch, rows: int) -> Batch:
    """Return the largest batch that is evaluated at once; evaluation doesn't use segments."""
    return Batch(batch.tokens_BT[:rows], batch.targets_BT[:rows], None)


class Few:
    """A batch to evaluate, with the counts that losses are divided by."""

    tokens = bytes = 1

    def __init__(self, batch: Batch):
        self.batch, self.rows = batch, len(batch.tokens_BT)

    def batches(self, first: int, every: int) -> list[tuple[range, Batch]]:
        return [(range(self.rows), self.batch)]


def fresh_products(module: nn.Module, batch: Batch) -> set[tuple]:
    """Return the shapes of a module's matrix products whose row count varies: those with experts' weights."""
    if not isinstance(module, MoE):
        return set()
    # with expert choice, all experts read the same number of rows
    if isinstance(module.router, ExpertChoice) and batch.segments_BT is None:
        return set()
    # forward, and the gradients of both factors
    shapes = {tuple(param.shape) for param in module.experts.parameters() if param.ndim == 2}
    return set(itertools.product(shapes, ("output", "inputs", "weights")))


class LiveStorages(TorchDispatchMode):
    """Dispatch mode that tracks the storages of a device's tensors: their current and peak bytes.

    A storage counts once, however many views share it, from its creation until its last tensor is freed.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.bytes = self.peak_bytes = 0
        self.sizes: dict[int, int] = {}  # of each live storage, keyed by address
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
            # fake tensors report the device they stand for, but their storages are on "meta"
            device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
            if device.type != self.device.type:
                return
            self.sizes[address] = 0
            self.watches[address] = weakref.ref(storage, lambda _: self.drop(address))
        self.bytes += size - self.sizes[address]  # it may have been resized
        self.sizes[address] = size
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def drop(self, address: int) -> None:
        self.bytes -= self.sizes.pop(address)
        del self.watches[address]


class Imagined(LiveStorages):
    """The same for fake tensors, with a made-up result where a tensor's value is read.

    products: shapes of the bf16 matrix products so far
    inside: peak bytes inside custom operations, beyond their arguments
    """

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.products: set[tuple] = set()
        self.inside: dict[tuple, int] = {}

    def run(self, func: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
        if func is prim.device.default:  # the most frequent call, so answered first
            return args[0].fake_device
        if func is aten._local_scalar_dense.default:
            return an_answer(args[0].dtype)
        if func in PRODUCTS and args[-1].dtype == torch.bfloat16:
            self.products.add(key_of(func, args))
        if made := OPDEFS.get(func._name):
            return self.run_custom(func, made._init_fn, args)
        return func(*args, **kwargs)

    def run_custom(self, func: OpOverload, inside: Callable, args: tuple) -> Any:
        """Run the implementation of a custom operation, because its fake only allocates the outputs.

        A scan takes a time step for each token, so its peak is cached for further calls with the same shapes.
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
    """Return the assumed value of a scalar: False for checks, a large count of targets, a finite loss."""
    if dtype == torch.bool:
        return False
    return 1.0 if dtype.is_floating_point else sys.maxsize >> 1


def key_of(func: OpOverload, args: tuple) -> tuple:
    return func, *(tuple(one.shape) if isinstance(one, Tensor) else one for one in args)
