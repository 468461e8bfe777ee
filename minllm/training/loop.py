"""The training loop: when a run steps, logs, evaluates, saves and ends. `step.py` has the step itself."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from minllm.errors import UserError
from minllm.runs.documents import DocumentLosses
from minllm.runs.records import marked
from minllm.training import checkpoints, machine, memory
from minllm.training.answers import ACCURACY
from minllm.training.averaging import averaged
from minllm.training.budget import PACE_STEPS
from minllm.training.evaluation import evaluate
from minllm.training.gathering import gather
from minllm.training.interruption import Interruption
from minllm.training.progress import ProgressBar
from minllm.training.run import Run
from minllm.training.step import (
    Diverged,
    as_memory_allows,
    compile_steps,
    prefetched,
    read_metrics,
    update,
    whole_batch_gradient,
)
from minllm.training.utilisation import utilisation

T = TypeVar("T")


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
    loss_of = compile_steps(run, run.folder.say) if compiling else run.objective.loss
    logged_steps, logged_seconds = 0, 0.0
    fastest_seconds = math.inf  # other load on the machine can only slow a step down
    run.began = time.perf_counter() - progress.seconds
    first_step, last, stopping = progress.step, False, None
    run.model.train()

    with (
        Interruption(shown=run.processes.is_first) as interruption,
        ProgressBar(shown=run.folder.on_terminal) as bar,
        prefetched(run),
    ):
        if progress.step > 0:
            last = budget.spent(progress.step, progress.seconds) or is_solved(run)
            catch_up(run, last)
            if is_solved(run) and not last:
                last = True
                run.folder.say(solved(run))
            if last and run.branch:
                progress.total_steps = budget.total_steps
                save(run)
            stopping = run.processes.any_signal(interruption.signal)
        while not last and stopping is None:
            step_began = time.perf_counter()
            lr = run.schedule.lr(progress.position, budget.total_steps)
            with keeping(run):
                loss = whole_batch_gradient(run, loss_of)
            run.pending.add(progress.step, {"train_loss": loss, **update(run, lr)})
            # time is the device's where a line of metrics is due, and where the pace or a compilation is measured
            measured = compiling or progress.step < first_step + PACE_STEPS
            ends = budget.spent(progress.step + 1, progress.seconds)
            loss = read_metrics(run, measured or due(settings.log_every, progress.step + 1, ends))

            step_seconds = time.perf_counter() - step_began
            fastest_seconds = min(fastest_seconds, step_seconds)
            progress.step += 1
            progress.tokens += run.tokens_per_step
            # the first process's clock decides for all
            step_seconds, progress.seconds, _ = run.processes.exchange(
                step_seconds, time.perf_counter() - run.began
            )[0]
            progress.lr = lr
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
            if loss is not None:
                bar.show(progress, budget, loss, run.tokens_per_step / step_seconds)

            if due(settings.log_every, progress.step, last):
                record_training(run, tokens_per_second=logged_steps * run.tokens_per_step / logged_seconds)
                logged_steps, logged_seconds = 0, 0.0

            better = False
            if due(settings.eval_every, progress.step, last) or part_ended(run):
                better = record_evaluation(run, last)
                if is_solved(run) and not last:
                    last = True
                    run.folder.say(solved(run))

            undecided = settings.compile == "auto" and "compile" not in progress.decisions
            if undecided and progress.step >= PACE_STEPS:
                seconds_left = budget.seconds_left(progress.step, progress.seconds, fastest_seconds)
                compiling, why = run.processes.agreed(choose_compile(run, seconds_left))
                progress.decisions["compile"] = compiling
                run.folder.say(f"{'Compiling' if compiling else 'Not compiling'}: {why}.")
                if compiling:
                    loss_of = compile_steps(run, run.folder.say)

            stopping = run.processes.any_signal(interruption.signal)
            branches = progress.step in run.branch_steps
            if better or stopping or branches or due(settings.checkpoint_every, progress.step, last):
                with interruption.held():
                    save(run)

            if due(settings.sample_every, progress.step, last):
                write_sample(run)
    return None if last else stopping


def catch_up(run: Run, last: bool) -> None:
    """Do the logging, evaluation and sampling that the resumed run missed at its checkpoint's step."""
    settings, progress = run.settings, run.progress
    if run.processes.is_first:
        checkpoints.tidy(run.folder.checkpoints, progress, settings.keep_checkpoints, run.branch_steps)
    if "train_loss" in run.recorded:
        progress.recent_losses.clear(), progress.recent_figures.clear()
    elif due(settings.log_every, progress.step, last) and progress.recent_losses and progress.lr is not None:
        record_training(run, tokens_per_second=progress.tokens_per_second(run.tokens_per_step))
    evaluates = due(settings.eval_every, progress.step, last) or part_ended(run)
    if evaluates and "val_loss" not in run.recorded:
        record_evaluation(run, last)
        if run.processes.is_first and checkpoints.is_saved(run.folder.checkpoints, progress.step):
            progress.records = marked(run.folder.path)
            run.folder.written(lambda: checkpoints.save_progress(run.folder.checkpoints, progress))
    if due(settings.sample_every, progress.step, last) and not run.is_sampled:
        write_sample(run)


def is_solved(run: Run) -> bool:
    """Whether the latest evaluation has reached the accuracy at which the run ends."""
    wanted, answers = run.settings.stop_at_accuracy, run.progress.answers
    return wanted is not None and answers is not None and answers[ACCURACY] >= wanted


def solved(run: Run) -> str:
    return (
        f"Step {run.progress.step} is the last: val_accuracy={run.progress.answers[ACCURACY]:.4g} has reached"
        f" train.stop_at_accuracy={run.settings.stop_at_accuracy:g}."
    )


def choose_compile(run: Run, seconds_left: float) -> tuple[bool, str]:
    """Return whether to compile from now on, and why."""
    if run.gathered is not None:
        return False, "sharded models aren't compiled"
    return machine.choose_compile(run.device, seconds_left)


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
    """Save a checkpoint, and restore the run folder first if parts of it were removed.

    Raises:
        Diverged: a step since the last one that was read isn't finite; the checkpoint isn't written.
    """
    read_metrics(run, everything=True)
    contents = gather(run.model, run.optimizer, run.average, keep=run.processes.is_first)
    if not run.processes.is_first:
        return
    run.progress.seconds = time.perf_counter() - run.began
    run.folder.mend()
    run.progress.records = marked(run.folder.path)
    keep, folder = run.settings.keep_checkpoints, run.folder.checkpoints
    model, average, branches = run.model, run.average, run.branch_steps
    run.folder.written(
        lambda: checkpoints.save(
            folder, model, run.optimizer, run.progress, keep, average, contents, branches
        )
    )


@contextlib.contextmanager
def keeping(run: Run) -> Iterator[None]:
    """If the body fails, save a checkpoint of the last completed step, then re-raise the error."""
    try:
        yield
    except Exception as error:
        saved = checkpoints.is_saved(run.folder.checkpoints, run.progress.step)
        kept_whole = run.gathered is None  # the other processes' shards can't be gathered after a failure
        if run.progress.step > 0 and not saved and kept_whole and not isinstance(error, Diverged):
            # saving may fail for the same reason (disk, memory); report the first error
            with contextlib.suppress(OSError, MemoryError, RuntimeError, UserError):
                save(run)
        raise


def evaluation(run: Run, by_document: bool) -> tuple[dict[str, float], np.ndarray | None]:
    """Evaluate the model on the validation set, with as many rows at a time as training uses.

    Returns the metrics and, if requested, the nats of each document.
    """

    def attempt(rows: int) -> tuple[dict[str, float], np.ndarray | None]:
        run.validation.batch_size = rows
        nats = np.zeros(len(run.document_bytes)) if by_document else None
        figures = evaluate(
            run.model,
            run.objective,
            run.validation,
            run.device,
            run.precision,
            nats,
            run.processes,
            run.answers,
        )
        return figures, nats

    return with_all_parameters(run, lambda: as_memory_allows(run, attempt, run.settings.batch_size))


def with_all_parameters(run: Run, act: Callable[[], T]) -> T:
    """Return what `act` returns; while it runs, sharded parameters are gathered."""
    return act() if run.gathered is None else run.gathered(act)


def record_training(run: Run, tokens_per_second: float) -> None:
    """Write a line of metrics for the steps since the last line."""
    progress = run.progress
    read_metrics(run, everything=True)
    record(
        run,
        train_loss=sum(progress.recent_losses) / len(progress.recent_losses),
        lr=progress.lr,
        grad_norm=progress.grad_norm,
        tokens_per_second=tokens_per_second,
        **utilisation(run, tokens_per_second),
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
    may_end = last or run.settings.stop_at_accuracy is not None
    by_document = may_end and run.document_bytes is not None
    read_metrics(run, everything=True)
    with keeping(run), averaged(run.average):
        figures, nats = evaluation(run, by_document)
        progress.answers = run.answers.summary() if run.answers else None
        if nats is not None and (last or is_solved(run)):
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
    read_metrics(run, everything=True)
    try:
        with keeping(run):
            with averaged(run.average):
                run.latest_samples = with_all_parameters(run, run.sample)
            if run.latest_samples:
                run.folder.samples(step, [prompt + text for prompt, text in run.latest_samples])
    except Exception as error:
        if not memory.ran_out(error):
            raise
        run.folder.say(f"Memory ran out while generating a sample: step {step} has none.")
    if run.latest_samples:
        run.logger.samples(step, run.latest_samples)
