"""One trial in its own process: applies the limits, trains, reports to the study, and writes its outcome.

The processes forked on this machine and the jobs of a cluster run the same function.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import optuna
import torch
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState

from minllm.errors import UserError, first_line, is_full
from minllm.page.units import mib
from minllm.runs import outcome
from minllm.runs.folder import RunDir, SilentRunDir, to_json, write_text
from minllm.runs.outcome import OF_THE_LAUNCHER, OUTPUT, TOO_LONG, Outcome
from minllm.schema.building import build
from minllm.sweep import limits
from minllm.sweep.launchers import ends_a_job, time_was_up
from minllm.sweep.metric import Accuracy, Metric, minimized, value
from minllm.sweep.prediction import predicted_peak
from minllm.sweep.store import open_study, storage_errors
from minllm.training import machine, memory, preparation, train
from minllm.training.launched import place
from minllm.training.loggers import Logger
from minllm.training.parallel import Processes
from minllm.training.process_group import process_group
from minllm.training.run import Run
from minllm.training.step import Diverged

START_NOISE = 1.05
"""Factor by which later losses may exceed the first one: each is of another batch, or of the validation set."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a trial's process needs to know, passed as a file in the study's folder."""

    number: int
    trial_id: int
    attempt: str
    """Identifies this attempt, as opposed to an earlier one that was interrupted."""
    run_dir: str
    config: dict[str, Any]
    """The configuration, as `python run.py` would run it."""
    study: str
    pruner: dict[str, Any]
    metric: Metric
    limit_bytes: int | None
    """None uses what is free on its machine when it starts; the same holds for `threads`."""
    predict: bool
    minutes: float | None
    threads: int | None

    @staticmethod
    def file(folder: Path, number: int) -> Path:
        return folder / ".assignments" / f"{number}.json"

    def write(self, folder: Path) -> None:
        file = self.file(folder, self.number)
        file.parent.mkdir(exist_ok=True)
        write_text(file, to_json(asdict(self)))


class DoesNotFit(Exception):
    """The trial's predicted peak memory exceeds its limit."""


class TimeIsUp(Exception):
    """The trial has taken longer than `sweep.trial_minutes`."""


class GivenUp(Exception):
    """The search has queued this trial again, or has assigned it to another process."""


def perform(folder: Path, number: int, storage: str | None, wanted: str | None = None) -> None:
    """Run a trial as assigned, and write its outcome and output to its run folder.

    Args:
        folder: the study's folder.
        number: the trial's number.
        storage: the study's database, or None; it may contain a password, so it isn't written to the assignment.
        wanted: the attempt that this process was started for; it may be outdated if the process was queued for long.

    Raises:
        OSError: the disk is full, so the outcome can't be written.
    """
    assignment = Assignment(**json.loads(Assignment.file(folder, number).read_text(encoding="utf-8")))
    if wanted not in (None, assignment.attempt):
        return  # the trial was assigned to another process meanwhile
    device = device_of(assignment)
    limit_bytes = assignment.limit_bytes or limits.free_bytes(device, place().local_size)
    assignment = replace(
        assignment,
        # the prediction is compared with what the kernel will allow
        limit_bytes=limit_bytes if device.type == "cuda" else limits.at_most_hard_limit(limit_bytes),
        threads=assignment.threads or limits.threads_for(place().local_size),
    )
    run_dir = Path(assignment.run_dir)
    if place().rank:
        return follow(assignment, folder, storage)
    shutil.rmtree(run_dir, ignore_errors=True)  # left by this same attempt, if a cluster restarted it
    run_dir.mkdir(parents=True)
    with printing_to(run_dir / OUTPUT):
        try:
            outcome.write(attempt(assignment, folder, storage), run_dir, assignment.attempt)
        except GivenUp as error:
            print(error)


def follow(assignment: Assignment, folder: Path, storage: str | None) -> None:
    """Train a trial together with its first process, which alone reports what becomes of it."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        try:
            trained(assignment, OmegaConf.create(assignment.config), folder, storage, {})
        except (SystemExit, UserError):
            return  # the first process has failed, or has the same error
        except Exception:
            with (Path(assignment.run_dir) / OUTPUT).open("a", encoding="utf-8") as output:
                traceback.print_exc(file=output)


def attempt(assignment: Assignment, folder: Path, storage: str | None) -> Outcome:
    """Train and return the outcome, whatever it is; only a full disk and GivenUp are raised."""
    began = time.perf_counter()
    cfg = OmegaConf.create(assignment.config)
    figures: dict[str, Any] = {"threads": assignment.threads}
    try:
        value = trained(assignment, cfg, folder, storage, figures)
        result = Outcome("complete", value)
    except (Exception, SystemExit) as error:  # experimental code may call exit, and SIGTERM does
        if isinstance(error, GivenUp) or ends_a_job(error):
            raise
        limits.lift()  # reporting needs some memory too
        if is_full(error):
            raise
        if not isinstance(error, (optuna.TrialPruned, DoesNotFit, TimeIsUp, UserError)):
            traceback.print_exc()
        result = judged(error)
        print(result.text, flush=True)
    figures["seconds"] = round(time.perf_counter() - began, 3)
    return Outcome(result.state, result.value, result.reason, result.text, figures)


def trained(
    assignment: Assignment, cfg: DictConfig, folder: Path, storage: str | None, figures: dict[str, Any]
) -> float:
    """Train and return the metric; measurements are added to `figures`."""
    limits.offer_to_the_kernel()
    with process_group(cfg.train) as processes, processes.failing_together():
        return trained_by(processes, assignment, cfg, folder, storage, figures)


def trained_by(
    processes: Processes,
    assignment: Assignment,
    cfg: DictConfig,
    folder: Path,
    storage: str | None,
    figures: dict[str, Any],
) -> float:
    rows = rows_that_fit(cfg, assignment, figures, processes) if processes.is_first else 0
    rows = processes.agreed(rows)
    limits.hold_to(assignment.limit_bytes, assignment.threads, device_of(assignment))
    judge = judge_of(assignment, folder, storage) if processes.is_first else None
    run_dir = Path(assignment.run_dir)
    run_folder = RunDir(run_dir) if processes.is_first else SilentRunDir(run_dir)
    run, tokenizer, notes = preparation.prepare(
        cfg, run_dir, None, cfg.init_from, cfg.branch_from, run_folder, processes
    )
    asked = run.progress.decisions["micro_batch_size"]
    if rows < min(asked, len(processes.rows(cfg.train.batch_size))):
        run.progress.decisions["micro_batch_size"] = rows
        notes.append(f"{asked} rows at a time wouldn't fit in memory: starting with {rows}.")
    if judge:
        judge.watch(run)
    try:
        summary = train.carry_out(run, tokenizer, notes, cfg)
    finally:
        figures |= {
            "params": sum(p.numel() for p in run.model.parameters()),
            "peak_bytes": memory.peak_bytes(run.device),
            "steps": run.progress.step,
            **run.progress.decisions,
        }
    if not processes.is_first:
        return math.nan  # the first process reports
    figures |= {name: summary[name] for name in ("val_bound", *get_args(Accuracy)) if name in summary}
    return value_of(summary, assignment.metric)


def judge_of(assignment: Assignment, folder: Path, storage: str | None) -> PruningLogger:
    """Return what reports this trial to its study. Raises GivenUp if the study no longer expects its result."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler()  # nothing is sampled here
    pruner = build(OmegaConf.create(assignment.pruner), place="sweep.pruner")
    study = open_study(assignment.study, storage, folder, sampler=sampler, pruner=pruner)
    judge = PruningLogger(optuna.Trial(study, assignment.trial_id), assignment, storage)
    with storage_errors(storage):
        judge.refuse_if_given_up()
    return judge


def value_of(summary: Mapping[str, Any], metric: Metric) -> float:
    """Return a run's metric. UserError if it is below the corpus's floor, since the search would call it the best."""
    if "below_floor" in summary:
        raise UserError(summary["below_floor"])
    return value(summary, metric)


def rows_that_fit(
    cfg: DictConfig, assignment: Assignment, figures: dict[str, Any], processes: Processes
) -> int:
    """Return the number of rows per micro-batch whose predicted peak fits in the limit.

    Sharded models aren't predicted.

    Raises:
        DoesNotFit: not even a single row fits.
    """
    share = len(processes.rows(cfg.train.batch_size))
    rows = min(cfg.train.micro_batch_size or share, share)
    if not assignment.predict or processes.share_parameters:
        return rows
    try:
        whole = figures["predicted_bytes"] = predicted_peak(cfg, rows)
        if whole <= assignment.limit_bytes:
            return rows
        one = figures["predicted_bytes"] = predicted_peak(cfg, 1)
    except UserError:
        raise
    except Exception as error:  # experimental code may read values, which fake tensors don't have
        print(f"The peak memory can't be predicted: {first_line(error)}.")
        return rows
    if one > assignment.limit_bytes:
        raise DoesNotFit(
            f"It needs {mib(one)} even with one row at a time, but its limit is {mib(assignment.limit_bytes)}."
        )
    each = (whole - one) / max(rows - 1, 1)
    while rows > 1 and one + each * (rows - 1) > assignment.limit_bytes:
        rows //= 2
    figures["predicted_bytes"] = round(one + each * (rows - 1))
    return rows


def device_of(assignment: Assignment) -> torch.device:
    return machine.choose_device(assignment.config["train"]["device"])


def judged(error: BaseException) -> Outcome:
    """Return the outcome that an error stands for."""
    if isinstance(error, optuna.TrialPruned):
        return Outcome("pruned", reason="pruner", text=str(error))
    if isinstance(error, TimeIsUp):
        return Outcome("pruned", reason="time", text=str(error))
    if time_was_up(error):
        return Outcome("pruned", reason="time", text=OF_THE_LAUNCHER)
    if isinstance(error, DoesNotFit):
        return Outcome("pruned", reason="predicted", text=str(error))
    if isinstance(error, Diverged):
        return Outcome("pruned", reason="diverged", text=str(error))
    if memory.ran_out(error):
        return Outcome("pruned", reason="memory", text=first_line(error) + ".")
    if isinstance(error, UserError):
        return Outcome("failed", reason="crash", text=str(error))
    return Outcome("failed", reason="crash", text=f"{type(error).__name__}: {first_line(error)}.")


class PruningLogger(Logger):
    """Wraps a run's logger: reports each evaluation to the study, and stops a run that isn't worth continuing.

    Raises:
        TrialPruned: the study's pruner decided that other trials were better at this point.
        Diverged: the losses of training and validation are above that of the first step.
        TimeIsUp: the trial has exceeded its time limit.
        GivenUp: the search no longer waits for this attempt.
        UserError: the study's database can't be used.
    """

    def __init__(self, trial: optuna.Trial, assignment: Assignment, storage: str | None):
        self.trial, self.storage = trial, storage
        self.metric, self.attempt = assignment.metric, assignment.attempt
        # a pretrained model starts so low that its first evaluation may be above its first batch
        self.begins_trained = any(assignment.config[key] is not None for key in ("init_from", "branch_from"))
        self.deadline = time.monotonic() + (assignment.minutes or math.inf) * 60
        self.start_loss, self.train_loss = math.inf, -math.inf
        self.reported = 0

    def watch(self, run: Run) -> None:
        self.run, self.own, run.logger = run, run.logger, self

    def start(self, cfg: DictConfig, run_dir: Path) -> str | None:
        return self.own.start(cfg, run_dir)

    def samples(self, step: int, rows: list[tuple[str, str]]) -> None:
        self.own.samples(step, rows)

    def finish(self, summary: dict[str, Any]) -> None:
        self.own.finish(summary)

    def log(self, event: dict[str, Any]) -> None:
        self.own.log(event)
        recent = self.run.progress.recent_losses  # since the last line of metrics, which this may be
        if recent:
            self.train_loss = recent[-1]
        if math.isinf(self.start_loss):
            self.start_loss = self._initial_loss(recent, event.get("val_loss", math.inf))
        if time.monotonic() > self.deadline:
            raise TimeIsUp(TOO_LONG)
        if "val_loss" in event:
            with storage_errors(self.storage):
                self._judge(event)

    def refuse_if_given_up(self) -> FrozenTrial:
        """Return the trial from the study. Raises GivenUp if the study no longer expects this attempt's result."""
        known = self.trial.storage.get_trial(self.trial._trial_id)
        if known.state != TrialState.RUNNING or known.user_attrs["attempt"] != self.attempt:
            raise GivenUp("The search has abandoned this attempt at the trial.")
        return known

    def _initial_loss(self, train_losses: Sequence[float], val_loss: float) -> float:
        """Return the loss above which training has diverged; infinite as long as it is unknown."""
        if self.begins_trained:
            return val_loss
        # a resumed run may begin with an evaluation; an objective that draws noise may begin with an easy batch by
        # chance, so it's never below the loss of a uniform guess
        return max(train_losses[0] if train_losses else val_loss, math.log(self.run.model.vocab_size))

    def _judge(self, event: dict[str, Any]) -> None:
        val_loss, step = event["val_loss"], event["step"]
        if not math.isfinite(val_loss):
            raise Diverged(f"The loss is {val_loss} at step {step}.")
        # only the validation loss may rise where the model overfits, or is validated on longer texts
        if min(val_loss, self.train_loss) > START_NOISE * self.start_loss:
            raise Diverged(
                f"The loss is {val_loss:.3f} at step {step}, above its initial {self.start_loss:.3f}."
            )
        budget, evals = self.run.budget, self.run.settings.evals
        last = budget.spent(event["step"], event["seconds"])
        # with train.evals, trials of different speed are compared at the same share of their budget
        index = event["step"] if evals is None else evals if last else budget.passed(evals)
        if index <= self.reported:
            return
        self.reported = index
        known = self.refuse_if_given_up()
        reached = value(event, self.metric)
        if index not in known.intermediate_values:  # an interrupted attempt may have reported it already
            self.trial.report(reached, index)
        if not last and self.trial.should_prune():
            raise optuna.TrialPruned(
                f"Its {minimized(self.metric)} of {reached:.4f} at step {event['step']} was worse than that of other"
                " trials."
            )


@contextlib.contextmanager
def printing_to(file: Path) -> Iterator[None]:
    """Redirect the output of this process and its children to a file."""
    before = [os.dup(1), os.dup(2)]
    sys.stdout.flush(), sys.stderr.flush()
    with file.open("w", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the disk is full, which the exception already says
            sys.stdout.flush(), sys.stderr.flush()
        for number, kept in enumerate(before, 1):
            os.dup2(kept, number)
            os.close(kept)
