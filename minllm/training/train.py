"""`python run.py`: train a model, watch it, and end with how good it is and what it writes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from minllm.data.batches import check_data, open_data
from minllm.data.floor import above_floor
from minllm.errors import DISK_TROUBLE, UserError, disk_sentence
from minllm.generation.generate import generate
from minllm.laws.laws import UNCHECKED, check_laws
from minllm.model.build import build_model, rebuild_model
from minllm.model.cost import cost
from minllm.model.lm import LM
from minllm.model.size import in_words
from minllm.runs.find import unchangeable
from minllm.runs.folder import STOPPED, RunDir
from minllm.schema.building import build
from minllm.schema.options import RunPlace
from minllm.tokenizer import Tokenizer
from minllm.training import checkpoints, machine, memory
from minllm.training.budget import Budget
from minllm.training.checkpoints import Progress
from minllm.training.evaluation import LOOKAHEAD_WARNING
from minllm.training.loop import Run, fit
from minllm.training.settings import Settings


def train(
    cfg: DictConfig, run_dir: Path, *, resume: RunPlace | None = None, init_from: RunPlace | None = None
) -> dict:
    """Train the model that `cfg` describes; return what summary.json says.

    Args:
        run_dir: the folder of the run; it is made when all that can be refused has been.
        resume: the run to go on with from its last checkpoint; `run_dir` is its folder.
        init_from: the run whose best weights this one begins with.

    Raises:
        UserError: the configuration can't be trained, the loss is no number any more, or memory ran out.
        OSError: the run's folder can't be written, or the disk is full.
        SystemExit: Ctrl-C or SIGTERM stopped the run, after a checkpoint; 128 + the signal's number.
    """
    with memory.running_out("the model was trained"):
        if not resume:
            return carry_out(*prepare(cfg, run_dir, None, init_from), cfg)
        folder = RunDir(run_dir)
        # how far the run is must not change between reading it and going on
        with folder.alone():
            return carry_out(*prepare(cfg, run_dir, resume, init_from, folder), cfg, resume)


def carry_out(
    run: Run, tokenizer: Tokenizer, notes: list[str | None], cfg: DictConfig, resume: str | None = None
) -> dict:
    """Train what `prepare` has prepared, and write the run's folder; return what summary.json says."""
    with run.folder.alone():
        if not resume:
            run.folder.refuse_another_run()  # another may have begun meanwhile
        # before anything is written, since a service may refuse what the logger asks for
        notes.append(run.logger.start(cfg, run.folder.path))
        summary: dict[str, Any] = {}
        try:
            if resume:
                run.folder.resume_at(run.progress.step, run.progress.records)
            run.folder.begin(cfg, tokenizer)
            for note in filter(None, notes):
                run.folder.say(note)
            with explained(run):
                signal = fit(run)
                if signal is None:
                    figures = summarise(run, cfg)
                    run.folder.summary(figures)
                    summary = figures
        finally:
            run.logger.finish(summary)
    if signal is not None:
        run.folder.say(f"{STOPPED} {run.progress.step}. To go on: python run.py resume={run.folder.path}")
        raise SystemExit(128 + signal)
    for line in report(run, summary):
        run.folder.say(line)
    return summary


@contextlib.contextmanager
def explained(run: Run) -> Iterator[None]:
    """Turn a failure to write the run's folder into a sentence that says where the run can go on."""
    try:
        yield
    except OSError as error:
        inside = str(error.filename or "").startswith(str(run.folder.path))
        if not inside and error.errno not in DISK_TROUBLE:
            raise
        kept = checkpoints.all_in(run.folder.checkpoints)
        where = f"The last checkpoint is {kept[-1].name}" if kept else "There is no checkpoint yet"
        raise UserError(
            f"{disk_sentence(error)} Training stopped at step {run.progress.step}. {where}. To go on, once that is"
            f" possible again: python run.py resume={run.folder.path}"
        ) from error


def prepare(
    cfg: DictConfig,
    run_dir: Path,
    resume: str | None,
    init_from: str | None,
    folder: RunDir | None = None,
) -> tuple[Run, Tokenizer, list[str | None]]:
    """Build all that the run is made of, and refuse what can't be trained; nothing is written in `run_dir` yet.

    Returns the run, its tokenizer, and what the log should say first.

    Args:
        folder: the run's folder, where the caller is alone in it already.
    """
    settings: Settings = build(cfg.train)
    folder = folder or RunDir(run_dir)
    if not resume:
        folder.refuse_another_run()
    checkpoint = last_checkpoint(folder, resume) if resume else None
    if checkpoint:
        init_from = None  # it has weights of its own by now
    progress = checkpoints.read_progress(checkpoint) if checkpoint else Progress()
    progress.configured = same_configuration(progress.configured, unchangeable(cfg))
    kept = folder.kept(progress.step, progress.records) if resume else None

    device = machine.choose_device(settings.device)
    pages = memory.keep_pages() if settings.malloc == "keep" and device.type == "cpu" else False
    memory.reset_peak(device)
    precision, why = choose_precision(settings, device, progress)
    rows = settings.micro_batch_size or settings.batch_size
    # what memory allowed holds on, unless another size is asked for now
    if progress.decisions.get("micro_batch_size_asked") != rows:
        progress.decisions |= {"micro_batch_size": rows, "micro_batch_size_asked": rows}

    if init_from:
        tokenizer = checkpoints.read_from(init_from, "best", lambda one: checkpoints.tokenizer_of(one, cfg))
    else:
        tokenizer = checkpoints.tokenizer_of(checkpoint, cfg) if checkpoint else build(cfg.tokenizer)
    progress.tokenizer = tokenizer.fingerprint
    source = build(cfg.data)
    check_data(source, tokenizer)
    with memory.running_out("the model was built"):
        model = (rebuild_model if resume else build_model)(cfg, tokenizer).to(device)
        checked = check_laws(cfg) if settings.check else None
    if init_from:
        checkpoints.read_from(init_from, "best", lambda one: checkpoints.load_weights(one, model))
    optimizer = build(cfg.optim, model)
    budget = budget_of(settings, model, cfg.data.seq_len)
    schedule = build(cfg.schedule)
    schedule.check(budget.total_steps)
    if checkpoint:
        checkpoints.load_weights(checkpoint, model)
        checkpoints.load_optimizer(checkpoint, optimizer)
        if budget.spent(progress.step, progress.seconds) and folder.is_finished(progress.step):
            raise budget.used_up(progress.step, progress.seconds)
        budget.go_on(progress.step, progress.seconds, progress.position, progress.total_steps)

    # last, since encoding a corpus takes time: all that can be refused has been
    corpus = open_data(source, tokenizer)
    progress.data = same_data(progress.data, corpus.store.metadata["splits"])
    run = Run(
        seed=cfg.seed,
        settings=settings,
        folder=folder,
        logger=build(cfg.logger),
        model=model,
        objective=build(cfg.objective),
        optimizer=optimizer,
        schedule=schedule,
        budget=budget,
        progress=progress,
        train_batches=corpus.train(settings.batch_size, cfg.seed),
        validation=corpus.validation(rows),
        floor_bpb=corpus.floor_bits_per_byte,
        sample=sampler(cfg, model, tokenizer),
        device=device,
        precision=precision,
        tokens_per_step=settings.batch_size * cfg.data.seq_len,
        validation_text=corpus.store.metadata["validation_text"],
    )
    if kept:
        run.recorded = kept.recorded
        run.is_sampled = kept.sample is not None
        run.latest_samples = [("", kept.sample)] if run.is_sampled else []
    params = sum(p.numel() for p in model.parameters())
    notes = [
        f"{'Going on' if resume else 'Training'} in {run_dir}",
        f"{params:,} parameters; {device}, {torch.get_num_threads()} threads; {precision}: {why}.",
        in_words(cfg, model),
        checked or UNCHECKED,
        f"Rows of {source.seq_len} tokens, packing={source.packing}: {corpus.layout.shares()}.",
        "glibc keeps the pages it has: faster steps for some memory (train.malloc=default turns it off)."
        if pages
        else None,
        f"The weights begin as those of {init_from}." if init_from else None,
        f"Going on from step {progress.step}." if checkpoint else None,
        "It had no checkpoint yet, so it begins anew." if resume and not checkpoint else None,
        f"{' and '.join(kept.changed)} in {run_dir} changed after the checkpoint was saved, so lines may be missing."
        if kept and kept.changed
        else None,
        f"There will be no samples. {model.cannot_generate}" if model.cannot_generate else None,
    ]
    return run, tokenizer, notes


def last_checkpoint(folder: RunDir, resume: str) -> Path | None:
    """Return where a run goes on from; None if it was stopped before its first checkpoint.

    Raises:
        UserError: a finished run has no checkpoint any more.
    """
    if checkpoints.all_in(folder.checkpoints) or (folder.path / "summary.json").exists():
        return checkpoints.find(resume, "last")
    return None


def choose_precision(settings: Settings, device: torch.device, progress: Progress) -> tuple[Any, str]:
    """Choose as asked, else as the run chose before, else as the machine says."""
    before = progress.decisions.get("precision")
    if settings.precision == "auto" and before:
        return before, "as before"
    precision, why = machine.choose_precision(settings.precision, device)
    progress.decisions["precision"] = precision
    return precision, why


def same_configuration(before: dict[str, str] | None, now: dict[str, str]) -> dict[str, str]:
    """Return what tells the configuration from others. UserError if the run was trained with another so far."""
    changed = [name for name in now if before and before.get(name, now[name]) != now[name]]
    if changed:
        raise UserError(
            f"{changed[0]} in the run's config.yaml isn't what its last checkpoint was trained with, so it can't go on"
            " as the same run. Undo that change, or start a new run from its weights with init_from=<run>."
        )
    return now


def same_data(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """Return what tells the documents from others. UserError if the run has learnt from others so far."""
    if before not in (None, now):
        raise UserError(
            "The documents that this run learns from have changed since it began, so it can't go on as the same run."
            " Put them back, or start a new run from its weights with init_from=<run>."
        )
    return now


def budget_of(settings: Settings, model: LM, seq_len: int) -> Budget:
    # counting FLOPs takes a second or two, so only a budget of FLOPs waits for it
    flops_per_token = math.nan if settings.flops is None else cost(model, seq_len).flops_per_token
    return Budget.of(settings, settings.batch_size * seq_len, flops_per_token)


def sampler(cfg: DictConfig, model: LM, tokenizer: Tokenizer) -> Callable[[], list[tuple[str, str]]]:
    """Return what lets the model, as it is then, write a new text."""
    options = asdict(build(cfg.sample))
    if model.cannot_generate:
        return lambda: []
    return lambda: [("", text) for text in generate(model, tokenizer, [""], **options)]


def summarise(run: Run, cfg: DictConfig) -> dict:
    """Return the run in figures: losses in nats a token and bits a byte, seconds, bytes."""
    progress = run.progress
    peak = memory.peak_bytes(run.device)  # before the costs are counted, which takes memory of its own
    return {
        "val_loss": progress.val_loss,
        "val_bpb": progress.val_bpb,
        **above_floor(progress.val_bpb, run.floor_bpb, run.validation.bytes),
        "best": progress.best,
        **asdict(cost(run.model, cfg.data.seq_len)),
        "steps": progress.step,
        "tokens": progress.tokens,
        "tokens_per_second": progress.tokens_per_second(run.tokens_per_step),
        "wall_seconds": progress.seconds,
        "peak_memory_bytes": peak,
        "seed": run.seed,
        "validation_text": run.validation_text,
        "device": str(run.device),
        "decisions": progress.decisions,
        "checked": run.settings.check,
        "choices": OmegaConf.to_container(cfg.choices),
    }


def report(run: Run, summary: dict) -> list[str]:
    """Return the last lines a person reads."""
    floor = f", {summary['bpb_above_floor']:.4f} above the corpus's floor" if "floor_bpb" in summary else ""
    return [
        "",
        *[(prompt + text).strip() for prompt, text in run.latest_samples],
        "",
        f"Validation: {summary['val_loss']:.4f} nats a token, {summary['val_bpb']:.4f} bits a byte{floor}.",
        *[LOOKAHEAD_WARNING] * bool(run.model.cannot_generate),
        *([summary["below_floor"]] if "below_floor" in summary else []),
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens, {summary['tokens_per_second']:,.0f} tokens/s,"
        f" {summary['wall_seconds']:.0f} s, at most {summary['peak_memory_bytes'] / 2**20:,.0f} MiB.",
        f"The run is in {run.folder.path}",
    ]
