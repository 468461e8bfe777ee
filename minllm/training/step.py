"""One training step: the gradient of a batch, in micro-batches that fit into memory, and the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minllm.data.batches import Rows
from minllm.errors import UserError
from minllm.model.seed import number
from minllm.model.steps import after_step, before_step
from minllm.objective.noise import Noise
from minllm.runs.folder import DIVERGED
from minllm.training import checkpoints, memory
from minllm.training.evaluation import autocast
from minllm.training.graphs import GradientGraph, why_not
from minllm.training.parallel import OUT_OF_MEMORY, OutOfMemoryElsewhere, full
from minllm.training.prefetch import prefetching
from minllm.training.run import Run
from minllm.training.transfer import set_lr

T = TypeVar("T")


class Diverged(UserError):
    """The loss or the gradient became NaN or infinite."""


def whole_batch_gradient(run: Run, loss_of: Callable[..., Tensor]) -> Tensor:
    """Compute the step's gradient in micro-batches; return the mean loss in nats per counted target, a scalar.

    Raises:
        Diverged: the loss isn't finite. If the device is read later, `check_finite` raises it then.
    """
    step, rows = run.progress.step, run.processes.rows(run.settings.batch_size)
    inputs, own = run.prefetcher.take(step) if run.prefetcher else prepared(run, step)
    # a batch of few rows may have given parts alone
    counted = max(1, run.processes.total(own))

    def attempt(micro_batch_size: int) -> Tensor:
        run.optimizer.zero_grad()
        before_step(run.model)
        seed_dropout(run.seed, run.progress.step, run.processes.place.rank)
        return accumulate(run, loss_of, inputs, counted, micro_batch_size)

    loss = as_memory_allows(run, attempt, len(rows), recovers=run.gathered is None)
    if not run.pending.lag:
        check_finite(run, step, {"train_loss": loss.item()})
    return loss


def prepared(run: Run, step: int) -> tuple[Rows, int]:
    """Return the inputs of this process's rows of a step, on the host, and their number of counted targets."""
    batch = run.train_batches.batch(step)
    of = run.settings.batch_size
    inputs = run.objective.inputs(batch, Noise(run.seed, step, run.processes.rows(of), of), run.model)
    counted = run.objective.counted(batch, inputs)
    return (inputs.pinned() if run.device.type == "cuda" else inputs), counted


@contextmanager
def prefetched(run: Run) -> Iterator[None]:
    """Prepare the inputs of the next step during a step in the body, if the device computes while the host does.

    Inputs that depend on the step before can't be.
    """
    if run.device.type != "cuda" or run.objective.learns_its_inputs:
        yield
        return
    with prefetching(partial(prepared, run)) as run.prefetcher:
        yield
    run.prefetcher = None


def accumulate(
    run: Run, loss_of: Callable[..., Tensor], inputs: Rows, counted: int, micro_batch_size: int
) -> Tensor:
    """Accumulate the gradient of the batch's mean loss over micro-batches; return that loss.

    Args:
        inputs: this process's rows of the batch.
        counted: the batch's number of targets, so that each weighs the same in whichever micro-batch it is.
    """
    inputs = inputs.to(run.device)
    total = torch.zeros((), device=run.device)
    add = run.graph or partial(add_gradient, run, loss_of)
    divisor = torch.full((), float(counted), device=run.device)
    for start in range(0, len(run.processes.rows(run.settings.batch_size)), micro_batch_size):
        total += add(inputs.rows(slice(start, start + micro_batch_size)), divisor)
    run.processes.add_up_gradients(run.model, total)
    return total


def add_gradient(run: Run, loss_of: Callable[..., Tensor], rows: Rows, counted: Tensor) -> Tensor:
    """Add the gradient of some rows' losses, divided by the batch's number of targets; return that loss."""
    with autocast(run.device, run.precision):
        loss = loss_of(run.model, rows) / counted
    loss.backward()
    return loss.detach()


def update(run: Run, lr: float) -> dict[str, Tensor]:
    """Clip the gradient and run the optimizer's and the modules' steps.

    Returns `grad_norm`, before clipping, and the modules' metrics, all of them scalars on the device.

    Raises:
        Diverged: the gradient isn't finite. If the device is read later, `check_finite` raises it then.
    """
    max_norm = math.inf if run.settings.clip is None else run.settings.clip
    grad_norm = full(clip_grad_norm_(run.model.parameters(), max_norm))
    if not run.pending.lag:
        check_finite(run, run.progress.step, {"grad_norm": grad_norm.item()})
    set_lr(run.optimizer, lr)
    run.optimizer.step()
    metrics = after_step(run.model, run.processes.add_up)
    if run.average:
        run.average.update(run.progress.step + 1)
    return {"grad_norm": grad_norm, **metrics}


def read_metrics(run: Run, everything: bool) -> float | None:
    """Note the figures of the steps that are due, or of all; return the loss of the last one, None if there is none.

    Raises:
        Diverged: a loss or gradient wasn't finite.
    """
    loss = None
    for step, figures in run.pending.read(everything):
        check_finite(run, step, figures)
        loss = figures.pop("train_loss")
        run.progress.recent_losses.append(loss)
        run.progress.grad_norm = figures.pop("grad_norm")
        if figures:
            run.progress.recent_figures.append(figures)
    return loss


def check_finite(run: Run, step: int, figures: dict[str, float]) -> None:
    """Raise `Diverged` if the loss or the norm of the gradient of a step isn't finite."""
    for name, what in (("train_loss", "loss"), ("grad_norm", "gradient")):
        if not math.isfinite(figures.get(name, 0.0)):
            raise Diverged(diverged(run, step, what))


def as_memory_allows(run: Run, attempt: Callable[[int], T], most: int, recovers: bool = True) -> T:
    """Return what `attempt` returns for the current micro-batch size (rows).

    When memory runs out in any process, all halve the micro-batch and try again; the batch size doesn't change.

    Args:
        most: the largest number of rows.
        recovers: whether `attempt` can be repeated; not if it may have failed while parameters were being gathered.
    """
    while True:
        rows = min(run.progress.decisions["micro_batch_size"], most)
        try:
            return attempt(rows)
        except Exception as error:
            if not memory.ran_out(error):
                raise
            if not recovers:
                raise memory.OutOfMemory(
                    f"Memory ran out with {rows} rows at a time, and sharded models can't go on with fewer by"
                    f" themselves: add train.micro_batch_size={max(1, rows // 2)}."
                ) from error
            if not isinstance(error, OutOfMemoryElsewhere):
                run.processes.report(OUT_OF_MEMORY)
        # outside the except block, so that the traceback no longer keeps tensors alive
        if run.graph:
            run.graph.release()
        run.progress.decisions["micro_batch_size"] = memory.halve(rows)
        run.folder.say(
            f"Memory ran out with {rows} rows at a time: continuing with"
            f" {run.progress.decisions['micro_batch_size']}. The batch size stays at {run.settings.batch_size}."
        )


def diverged(run: Run, step: int, what: str) -> str:
    kept = [path.name for path in checkpoints.all_in(run.folder.checkpoints)]
    return (
        f"The {what} is NaN or infinite at step {step}: {DIVERGED}. Try a lower optim.lr, a longer"
        f" schedule.warmup_steps, a smaller train.clip or train.precision=fp32."
        f" {f'The last checkpoint is {kept[-1]}.' if kept else 'No checkpoint was written yet.'}"
    )


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators for one step, so that dropout depends on the seed, the step and the process."""
    torch.manual_seed(number(seed, f"dropout/{step}/{rank}" if rank else f"dropout/{step}"))


def compile_steps(run: Run, say: Callable[[str], None]) -> Callable[..., Tensor]:
    """Return the compiled loss of the objective. If they can be, the passes of later steps are captured as CUDA graphs.

    Args:
        say: called with a sentence when it has been decided whether to capture.
    """
    loss_of = compile_loss(run)
    wanted = run.settings.graphs
    if wanted and why_not(run.settings, run.model, run.objective, run.device) is None:
        run.graph = GradientGraph(run.model, partial(add_gradient, run, loss_of), wanted, say)
    return loss_of


def compile_loss(run: Run) -> Callable[..., Tensor]:
    """Return the compiled loss of the objective; compilation happens in the first call."""
    import torch._functorch.config
    import torch._inductor.config

    # dropout then draws the same random numbers as without compilation
    torch._inductor.config.fallback_random = True
    # recompute norms and sums in the backward pass: less memory, and on CPUs no slower; on a GPU, steps take 2% longer
    # (activation_memory_budget would also recompute dropout, with different random numbers)
    stores = run.device.type == "cuda"
    torch._functorch.config.ban_recompute_materialized_backward = stores
    torch._functorch.config.ban_recompute_used_far_apart = stores
    torch._functorch.config.ban_recompute_long_fusible_chains = stores
    return torch.compile(run.objective.loss)
