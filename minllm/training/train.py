"""`python run.py`: train a model, report its progress, and finish with its validation loss and a sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from minllm.errors import DISK_TROUBLE, UserError, disk_sentence
from minllm.runs.folder import STOPPED, RunDir, SilentRunDir
from minllm.schema.options import RunPlace
from minllm.tokenizer import Tokenizer
from minllm.training import checkpoints, machine, memory
from minllm.training.loop import fit
from minllm.training.preparation import prepare
from minllm.training.process_group import process_group, shared_folder
from minllm.training.run import Run
from minllm.training.step import Diverged
from minllm.training.summary import report, summarise


def train(
    cfg: DictConfig,
    run_dir: Path,
    *,
    resume: RunPlace | None = None,
    init_from: RunPlace | None = None,
    branch_from: RunPlace | None = None,
) -> dict:
    """Train the model that `cfg` describes and return the contents of summary.json.

    Args:
        run_dir: the run folder. It is created only after everything that can be rejected has been checked.
        resume: the run to continue from its last checkpoint; `run_dir` is its folder.
        init_from: the run whose best weights this run starts from.
        branch_from: a run of another length, or a folder of runs, that this run is the same as up to some step.

    Raises:
        UserError: the configuration can't be trained, the loss became NaN or infinite, or memory ran out.
        OSError: the run folder can't be written, or the disk is full.
        SystemExit: Ctrl-C or SIGTERM stopped the run, after saving a checkpoint; the code is 128 + the signal number.
    """
    with (
        process_group(cfg.train) as processes,
        processes.failing_together(),
        memory.running_out("the model was trained"),
    ):
        run_dir, resume = shared_folder(processes, run_dir, resume)
        folder = RunDir(run_dir) if processes.is_first else SilentRunDir(run_dir)
        if not resume:
            return carry_out(*prepare(cfg, run_dir, None, init_from, branch_from, folder, processes), cfg)
        # hold the lock from reading the progress until training continues
        with folder.alone():
            return carry_out(
                *prepare(cfg, run_dir, resume, init_from, branch_from, folder, processes), cfg, resume
            )


def carry_out(
    run: Run, tokenizer: Tokenizer, notes: list[str | None], cfg: DictConfig, resume: str | None = None
) -> dict:
    """Train what `prepare` returned, write the run folder, and return the contents of summary.json.

    Of several processes, only the first writes and returns something.
    """
    with machine.matmul_precision(run.settings.matmul_precision), run.folder.alone():
        if not resume:
            run.folder.refuse_another_run()  # another process may have started one since
        # before anything is written: a service may reject what the logger asks for
        notes.append(run.logger.start(cfg, run.folder.path))
        summary: dict[str, Any] = {}
        try:
            if run.branch:
                run.folder.begin_with(run.branch.records)
            elif resume:
                run.folder.resume_at(run.progress.step, run.progress.records)
            run.folder.begin(cfg, tokenizer)
            for note in filter(None, notes):
                run.folder.say(note)
            with explained(run):
                signal = fit(run)
                if signal is None and run.processes.is_first:
                    metrics = summarise(run, cfg)
                    run.folder.summary(metrics)
                    summary = metrics
        except Diverged as error:
            run.folder.note(str(error))  # by which a comparison tells it from a crash
            raise
        finally:
            run.logger.finish(summary)
    if signal is not None:
        run.folder.say(f"{STOPPED} {run.progress.step}. To continue: python run.py resume={run.folder.path}")
        raise SystemExit(128 + signal)
    for line in report(run, summary) if summary else []:
        run.folder.say(line)
    return summary


@contextlib.contextmanager
def explained(run: Run) -> Iterator[None]:
    """Turn a failure to write the run folder into a UserError that says how to continue the run."""
    try:
        yield
    except OSError as error:
        inside = str(error.filename or "").startswith(str(run.folder.path))
        if not inside and error.errno not in DISK_TROUBLE:
            raise
        kept = checkpoints.all_in(run.folder.checkpoints)
        where = f"The last checkpoint is {kept[-1].name}" if kept else "There is no checkpoint yet"
        raise UserError(
            f"{disk_sentence(error)} Training stopped at step {run.progress.step}. {where}. Once the problem is"
            f" solved, continue with: python run.py resume={run.folder.path}"
        ) from error
