"""The training loop, in reading order: what happens in a step, and what happens between steps."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minllm.data.batches import Rows, TrainBatches, Validation
from minllm.errors import UserError
from minllm.model.lm import LM
from minllm.model.seed import number
from minllm.model.steps import after_step, before_step
from minllm.objective import Objective
from minllm.objective.noise import Noise
from minllm.runs.documents import DocumentLosses
from minllm.runs.folder import DIVERGED, RunDir
from minllm.runs.records import marked
from minllm.training import checkpoints, machine, memory
from minllm.training.averaging import Average, averaged
from minllm.training.budget import PACE_STEPS, Budget
from minllm.training.checkpoints import Progress
from minllm.training.evaluation import autocast, evaluate
from minllm.training.interruption import Interruption
from minllm.training.loggers import Logger
from minllm.training.progress import ProgressBar
from minllm.training.schedules import Schedule
from minllm.training.settings import Settings

T = TypeVar("T")


class Diverged(UserError):
    """The loss or the gradient became NaN or infinite."""


@dataclass
class Run:
    """Everything a training run consists of."""

    seed: int
    settings: Settings
    folder: RunDir
    logger: Logger
    model: LM
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    budget: Budget
    progress: Progress
    train_batches: TrainBatches
    validation: Validation
    floor_bpb: float | None
    """The validation set's true entropy in bits per byte, where it is known."""
    sample: Callable[[], list[tuple[str, str]]]
    """Returns (prompt, continuation) pairs from the current model; an empty list if it can't generate."""
    device: torch.device
    precision: machine.Precision
    tokens_per_step: int
    average: Average | None = None
    """The average of the parameters, which is evaluated, sampled from and saved in their place."""
    latest_samples: list[tuple[str, str]] = field(default_factory=list)
    validation_text: str | None = None
    """A hash of the validation text, independent of the tokenizer: runs with the same hash are comparable."""
    document_bytes: np.ndarray | None = None
    """The size of each validation document, to record each one's loss at the end; None doesn't record them."""
    recorded: frozenset[str] = frozenset()
    """The metrics that metrics.jsonl already has for the step from which a resumed run continues."""
    is_sampled: bool = False
    """Whether samples.txt already has a text for that step."""
    began: float = 0.0
    """The `time.perf_counter` time at which the run would have started, had it never been interrupted."""


def fit(run: Run) -> int | None:
    """Train until a budget is used up. Return the signal that stopped training early, or None.

    Whatever is raised, a checkpoint of the last completed step is kept if the disk allows it.

    Raises:
        Diverged: the loss or the gradient became NaN or infinite.
        OutOfMemory: memory ran out with a single row.
        OSError: the disk is full, or the folder can't be written. Earlier checkpoints are unchanged.
    """
    settings, progress, budget = run.settings, run.progress, run.budget
    compiling = progress.decisions.get("compile", False) if settings.compile == "auto" else settings.compile
    loss_of = compile_loss(run) if compiling else run.objective.loss
    logged_steps, logged_seconds = 0, 0.0
    fastest_seconds = math.inf  # other load on the machine can only slow a step down
    run.began = time.perf_counter() - progress.seconds
    last, stopping = False, None
    run.model.train()

    with Interruption() as interruption, ProgressBar(shown=run.folder.on_terminal) as bar:
        if progress.step > 0:
            last = budget.spent(progress.step, progress.seconds)
            catch_up(run, last)
            stopping = interruption.signal
        while not last and stopping is None:
            step_began = time.perf_counter()
            lr = run.schedule.lr(progress.position, budget.total_steps)
            with keeping(run):
                loss = whole_batch_gradient(run, loss_of)
            grad_norm = update(run, lr)

            step_seconds = time.perf_counter() - step_began
            fastest_seconds = min(fastest_seconds, step_seconds)
            progress.step += 1
            progress.tokens += run.tokens_per_step
            progress.seconds = time.perf_counter() - run.began
            progress.lr, progress.grad_norm = lr, grad_norm
            progress.recent_losses.append(loss)
            if compiling:
                memory.trim()
                compiling = False
            else:
                progress.timed_steps += 1
                progress.timed_seconds += step_seconds
            logged_steps, logged_seconds = logged_steps + 1, logged_seconds + step_seconds
            progress.before = [budget.position, budget.total_steps]
            budget.advance(progress.step, progress.seconds, step_seconds)
            progress.position, progress.total_steps = budget.position, budget.total_steps
            last = budget.spent(progress.step, progress.seconds)
            bar.show(progress, budget, loss, run.tokens_per_step / step_seconds)

            if due(settings.log_every, progress.step, last):
                record_training(run, tokens_per_second=logged_steps * run.tokens_per_step / logged_seconds)
                logged_steps, logged_seconds = 0, 0.0

            better = False
            if due(settings.eval_every, progress.step, last) or part_ended(run):
                better = record_evaluation(run, last)

            undecided = settings.compile == "auto" and "compile" not in progress.decisions
            if undecided and progress.step >= PACE_STEPS:
                seconds_left = budget.seconds_left(progress.step, progress.seconds, fastest_seconds)
                compiling, why = machine.choose_compile(run.device, seconds_left)
                progress.decisions["compile"] = compiling
                run.folder.say(f"{'Compiling' if compiling else 'Not compiling'}: {why}.")
                if compiling:
                    loss_of = compile_loss(run)

            stopping = interruption.signal
            if better or stopping or due(settings.checkpoint_every, progress.step, last):
                with interruption.held():
                    save(run)

            if due(settings.sample_every, progress.step, last):
                write_sample(run)
    return None if last else stopping


def catch_up(run: Run, last: bool) -> None:
    """Do the logging, evaluation and sampling that the resumed run missed at its checkpoint's step."""
    settings, progress = run.settings, run.progress
    checkpoints.tidy(run.folder.checkpoints, progress, settings.keep_checkpoints)
    if "train_loss" in run.recorded:
        progress.recent_losses.clear(), progress.recent_figures.clear()
    elif due(settings.log_every, progress.step, last) and progress.recent_losses and progress.lr is not None:
        record_training(run, tokens_per_second=progress.tokens_per_second(run.tokens_per_step))
    evaluates = due(settings.eval_every, progress.step, last) or part_ended(run)
    if evaluates and "val_loss" not in run.recorded:
        record_evaluation(run, last)
        progress.records = marked(run.folder.path)
        run.folder.written(lambda: checkpoints.save_progress(run.folder.checkpoints, progress))
    if due(settings.sample_every, progress.step, last) and not run.is_sampled:
        write_sample(run)


def due(every: int, step: int, last: bool) -> bool:
    return last or (every > 0 and step % every == 0)


def part_ended(run: Run) -> bool:
    """Whether the latest step ended one of the `train.evals` parts, as far as an old checkpoint tells."""
    budget, progress, parts = run.budget, run.progress, run.settings.evals
    position, total_steps = progress.before or (progress.position - 1, budget.total_steps)
    if progress.total_steps != budget.total_steps:  # the resumed run's length has changed
        total_steps = budget.total_steps
    return budget.passed(parts) > budget.passed(parts, (position, total_steps))


def save(run: Run) -> None:
    """Save a checkpoint, and restore the run folder first if parts of it were removed."""
    run.progress.seconds = time.perf_counter() - run.began
    run.folder.mend()
    run.progress.records = marked(run.folder.path)
    keep, folder = run.settings.keep_checkpoints, run.folder.checkpoints
    model, average = run.model, run.average
    run.folder.written(lambda: checkpoints.save(folder, model, run.optimizer, run.progress, keep, average))


@contextlib.contextmanager
def keeping(run: Run) -> Iterator[None]:
    """If the body fails, save a checkpoint of the last completed step, then re-raise the error."""
    try:
        yield
    except Exception as error:
        saved = checkpoints.is_saved(run.folder.checkpoints, run.progress.step)
        if run.progress.step > 0 and not saved and not isinstance(error, Diverged):
            # saving may fail for the same reason (disk, memory); report the first error
            with contextlib.suppress(OSError, MemoryError, RuntimeError, UserError):
                save(run)
        raise


def whole_batch_gradient(run: Run, loss_of: Callable[..., Tensor]) -> float:
    """Compute the step's gradient in micro-batches; return the mean loss in nats per counted target."""
    batch = run.train_batches.batch(run.progress.step)
    rows = len(batch.tokens_BT)
    noise = Noise(run.seed, run.progress.step, range(rows), rows)
    inputs = run.objective.inputs(batch, noise, run.model)
    # a batch of few rows may have given parts alone
    counted = max(1, run.objective.counted(batch, inputs))

    def attempt(micro_batch_size: int) -> float:
        run.optimizer.zero_grad()
        before_step(run.model)
        seed_dropout(run.seed, run.progress.step)
        return accumulate(run, loss_of, inputs, counted, micro_batch_size)

    loss = as_memory_allows(run, attempt)
    if not math.isfinite(loss):
        raise Diverged(diverged(run, "loss"))
    return loss


def evaluation(run: Run, by_document: bool) -> tuple[dict[str, float], np.ndarray | None]:
    """Evaluate the model on the validation set, with as many rows at a time as training uses.

    Returns the metrics and, if requested, the nats of each document.
    """

    def attempt(rows: int) -> tuple[dict[str, float], np.ndarray | None]:
        run.validation.batch_size = rows
        nats = np.zeros(len(run.document_bytes)) if by_document else None
        figures = evaluate(run.model, run.objective, run.validation, run.device, run.precision, nats)
        return figures, nats

    return as_memory_allows(run, attempt)


def as_memory_allows(run: Run, attempt: Callable[[int], T]) -> T:
    """Return what `attempt` returns for the current micro-batch size (rows).

    When memory runs out, halve the micro-batch and try again; the batch size doesn't change.
    """
    while True:
        rows = run.progress.decisions["micro_batch_size"]
        try:
            return attempt(rows)
        except Exception as error:
            if not memory.ran_out(error):
                raise
        # outside the except block, so that the traceback no longer keeps tensors alive
        run.progress.decisions["micro_batch_size"] = memory.halve(rows)
        run.folder.say(
            f"Memory ran out with {rows} rows at a time: continuing with"
            f" {run.progress.decisions['micro_batch_size']}. The batch size stays at {run.settings.batch_size}."
        )


def accumulate(
    run: Run, loss_of: Callable[..., Tensor], inputs: Rows, counted: int, micro_batch_size: int
) -> float:
    """Accumulate the gradient of the batch's mean loss over micro-batches; return that loss.

    Args:
        counted: the batch's number of targets, so that each weighs the same in whichever micro-batch it is.
    """
    inputs = inputs.to(run.device)
    total = torch.zeros((), device=run.device)
    for start in range(0, run.settings.batch_size, micro_batch_size):
        with autocast(run.device, run.precision):
            loss = loss_of(run.model, inputs.rows(slice(start, start + micro_batch_size))) / counted
        loss.backward()
        total += loss.detach()
    return total.item()


def update(run: Run, lr: float) -> float:
    """Clip the gradient and run the optimizer's and the modules' steps; return the norm before clipping."""
    max_norm = math.inf if run.settings.clip is None else run.settings.clip
    grad_norm = clip_grad_norm_(run.model.parameters(), max_norm).item()
    if not math.isfinite(grad_norm):
        raise Diverged(diverged(run, "gradient"))
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    if metrics := after_step(run.model):
        run.progress.recent_figures.append(metrics)
    if run.average:
        run.average.update(run.progress.step + 1)
    return grad_norm


def diverged(run: Run, what: str) -> str:
    kept = [path.name for path in checkpoints.all_in(run.folder.checkpoints)]
    return (
        f"The {what} is NaN or infinite at step {run.progress.step}: {DIVERGED}. Try a lower optim.lr, a longer"
        f" schedule.warmup_steps, a smaller train.clip or train.precision=fp32."
        f" {f'The last checkpoint is {kept[-1]}.' if kept else 'No checkpoint was written yet.'}"
    )


def seed_dropout(seed: int, step: int) -> None:
    """Seed torch's global generators for one step, so that dropout depends on the seed and the step alone."""
    torch.manual_seed(number(seed, f"dropout/{step}"))


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


def record_training(run: Run, tokens_per_second: float) -> None:
    """Write a line of metrics for the steps since the last line."""
    progress = run.progress
    record(
        run,
        train_loss=sum(progress.recent_losses) / len(progress.recent_losses),
        lr=progress.lr,
        grad_norm=progress.grad_norm,
        tokens_per_second=tokens_per_second,
        memory_bytes=memory.peak_bytes(run.device),
        **progress.recent_means(),
    )
    progress.recent_losses.clear(), progress.recent_figures.clear()


def record_evaluation(run: Run, last: bool) -> bool:
    """Evaluate and write a line of metrics; return whether this is the best evaluation so far.

    The last evaluation also writes the loss of each document, before the line of metrics: a resumed run doesn't
    evaluate again if that line exists.
    """
    progress = run.progress
    by_document = last and run.document_bytes is not None
    with keeping(run), averaged(run.average):
        figures, nats = evaluation(run, by_document)
        if nats is not None:
            run.folder.documents(DocumentLosses(nats, run.document_bytes))
    progress.seconds = time.perf_counter() - run.began
    progress.val_loss, progress.val_bpb = figures["val_loss"], figures["val_bpb"]
    better = progress.best is None or progress.val_loss < progress.best["val_loss"]
    if better:
        progress.best = {"step": progress.step, "val_loss": progress.val_loss}
    record(run, **figures)
    return better


def record(run: Run, **figures: float) -> None:
    """Write a line of metrics to the run folder and the logger."""
    event = {
        "step": run.progress.step,
        "tokens": run.progress.tokens,
        "seconds": round(run.progress.seconds, 3),
    }
    with keeping(run):
        run.folder.event({**event, **figures})
    run.logger.log({**event, **figures})


def write_sample(run: Run) -> None:
    """Generate a sample; write it to the run folder and the logger."""
    step = run.progress.step
    try:
        with keeping(run):
            with averaged(run.average):
                run.latest_samples = run.sample()
            if run.latest_samples:
                run.folder.samples(step, [prompt + text for prompt, text in run.latest_samples])
    except Exception as error:
        if not memory.ran_out(error):
            raise
        run.folder.say(f"Memory ran out while generating a sample: step {step} has none.")
    if run.latest_samples:
        run.logger.samples(step, run.latest_samples)
