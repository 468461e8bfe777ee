"""One training step: the gradient of a batch, in micro-batches that fit into memory, and the update."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from minllm.training.parallel import OUT_OF_MEMORY, OutOfMemoryElsewhere, whole
from minllm.training.run import Run

T = TypeVar("T")


class Diverged(UserError):
    """The loss or the gradient became NaN or infinite."""


def whole_batch_gradient(run: Run, loss_of: Callable[..., Tensor]) -> float:
    """Compute the step's gradient in micro-batches; return the mean loss in nats per counted target."""
    of = run.settings.batch_size
    rows = run.processes.rows(of)
    batch = run.train_batches.batch(run.progress.step)
    inputs = run.objective.inputs(batch, Noise(run.seed, run.progress.step, rows, of), run.model)
    # a batch of few rows may have given parts alone
    counted = max(1, run.processes.total(run.objective.counted(batch, inputs)))

    def attempt(micro_batch_size: int) -> float:
        run.optimizer.zero_grad()
        before_step(run.model)
        seed_dropout(run.seed, run.progress.step, run.processes.place.rank)
        return accumulate(run, loss_of, inputs, counted, micro_batch_size)

    loss = as_memory_allows(run, attempt, len(rows), recovers=run.gathered is None)
    if not math.isfinite(loss):
        raise Diverged(diverged(run, "loss"))
    return loss


def accumulate(
    run: Run, loss_of: Callable[..., Tensor], inputs: Rows, counted: int, micro_batch_size: int
) -> float:
    """Accumulate the gradient of the batch's mean loss over micro-batches; return that loss.

    Args:
        inputs: this process's rows of the batch.
        counted: the batch's number of targets, so that each weighs the same in whichever micro-batch it is.
    """
    inputs = inputs.to(run.device)
    total = torch.zeros((), device=run.device)
    for start in range(0, len(run.processes.rows(run.settings.batch_size)), micro_batch_size):
        with autocast(run.device, run.precision):
            loss = loss_of(run.model, inputs.rows(slice(start, start + micro_batch_size))) / counted
        loss.backward()
        total += loss.detach()
    run.processes.add_up_gradients(run.model, total)
    return total.item()


def update(run: Run, lr: float) -> float:
    """Clip the gradient and run the optimizer's and the modules' steps; return the norm before clipping."""
    max_norm = math.inf if run.settings.clip is None else run.settings.clip
    grad_norm = whole(clip_grad_norm_(run.model.parameters(), max_norm)).item()
    if not math.isfinite(grad_norm):
        raise Diverged(diverged(run, "gradient"))
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    if metrics := after_step(run.model, run.processes.add_up):
        run.progress.recent_figures.append(metrics)
    if run.average:
        run.average.update(run.progress.step + 1)
    return grad_norm


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
                run.processes.tell(OUT_OF_MEMORY)
        # outside the except block, so that the traceback no longer keeps tensors alive
        run.progress.decisions["micro_batch_size"] = memory.halve(rows)
        run.folder.say(
            f"Memory ran out with {rows} rows at a time: continuing with"
            f" {run.progress.decisions['micro_batch_size']}. The batch size stays at {run.settings.batch_size}."
        )


def diverged(run: Run, what: str) -> str:
    kept = [path.name for path in checkpoints.all_in(run.folder.checkpoints)]
    return (
        f"The {what} is NaN or infinite at step {run.progress.step}: {DIVERGED}. Try a lower optim.lr, a longer"
        f" schedule.warmup_steps, a smaller train.clip or train.precision=fp32."
        f" {f'The last checkpoint is {kept[-1]}.' if kept else 'No checkpoint was written yet.'}"
    )


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators for one step, so that dropout depends on the seed, the step and the process."""
    torch.manual_seed(number(seed, f"dropout/{step}/{rank}" if rank else f"dropout/{step}"))


def compile_loss(run: Run) -> Callable[..., Tensor]:
    """Return the compiled loss of the objective; compilation happens in the first call."""
    import torch._functorch.config
    import torch._inductor.config

    # dropout then draws the same random numbers as without compilation
    torch._inductor.config.fallback_random = True
    # recompute norms and sums in the backward pass: less memory, and on CPUs no slower
    # (activation_memory_budget would also recompute dropout, with different random numbers)
    torch._functorch.config.ban_recompute_materialized_backward = False
    torch._functorch.config.ban_recompute_used_far_apart = False
    torch._functorch.config.ban_recompute_long_fusible_chains = False
    return torch.compile(run.objective.loss)
