"""`python run.py`: train a model, report its progress, and finish with its validation loss and a sample."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from minllm.data.batches import check_data, open_data
from minllm.data.floor import above_floor
from minllm.data.source import PairSource, Source
from minllm.errors import DISK_TROUBLE, UserError, disk_sentence
from minllm.laws.laws import UNCHECKED, check_laws
from minllm.model.build import new_model, rebuild_model, shapes_of
from minllm.model.cost import cost, flops_per_token
from minllm.model.lm import LM
from minllm.model.size import in_words
from minllm.model.stack import set_recompute
from minllm.objective import Objective
from minllm.page import units
from minllm.runs.find import unchangeable
from minllm.runs.folder import STOPPED, RunDir, SilentRunDir
from minllm.schema.building import build
from minllm.schema.options import RunPlace
from minllm.tokenizer import Tokenizer
from minllm.training import checkpoints, machine, memory
from minllm.training.averaging import Average
from minllm.training.budget import Budget
from minllm.training.checkpoints import Progress
from minllm.training.evaluation import BOUND_NOTE, LOOKAHEAD_WARNING
from minllm.training.loggers import Silent
from minllm.training.loop import fit
from minllm.training.parallel import ALONE, Processes
from minllm.training.pending import LAG, PendingMetrics
from minllm.training.process_group import process_group, shared_folder
from minllm.training.resuming import last_checkpoint, same_average, same_configuration, same_data
from minllm.training.run import Run
from minllm.training.settings import Settings
from minllm.training.step import Diverged
from minllm.training.utilisation import mfu, peak_of


def train(
    cfg: DictConfig, run_dir: Path, *, resume: RunPlace | None = None, init_from: RunPlace | None = None
) -> dict:
    """Train the model that `cfg` describes and return the contents of summary.json.

    Args:
        run_dir: the run folder. It is created only after everything that can be rejected has been checked.
        resume: the run to continue from its last checkpoint; `run_dir` is its folder.
        init_from: the run whose best weights this run starts from.

    Raises:
        UserError: the configuration can't be trained, the loss became NaN or infinite, or memory ran out.
        OSError: the run folder can't be written, or the disk is full.
        SystemExit: Ctrl-C or SIGTERM stopped the run, after saving a checkpoint; the code is 128 + the signal number.
    """
    shares_parameters = cfg.train.get("parallel") == "fsdp"  # older runs don't have this option
    with (
        process_group(cfg.train.device, shares_parameters) as processes,
        processes.failing_together(),
        memory.running_out("the model was trained"),
    ):
        run_dir, resume = shared_folder(processes, run_dir, resume)
        folder = RunDir(run_dir) if processes.is_first else SilentRunDir(run_dir)
        if not resume:
            return carry_out(*prepare(cfg, run_dir, None, init_from, folder, processes), cfg)
        # hold the lock from reading the progress until training continues
        with folder.alone():
            return carry_out(*prepare(cfg, run_dir, resume, init_from, folder, processes), cfg, resume)


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
            if resume:
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


def prepare(
    cfg: DictConfig,
    run_dir: Path,
    resume: str | None,
    init_from: str | None,
    folder: RunDir | None = None,
    processes: Processes = ALONE,
) -> tuple[Run, Tokenizer, list[str | None]]:
    """Build every part of the run and reject what can't be trained; nothing is written to `run_dir` yet.

    Returns the run, its tokenizer, and the first lines of the log.

    Args:
        folder: the run folder, if the caller already holds its lock.
        processes: those that train the model together.
    """
    settings: Settings = build(cfg.train)
    share = processes.rows(settings.batch_size)
    is_sharded = processes.share_parameters
    if is_sharded and settings.compile is True:
        raise UserError(
            "train.parallel=fsdp can't be compiled: type train.compile=false, or train.parallel=ddp."
        )
    folder = folder or RunDir(run_dir)
    if not resume:
        folder.refuse_another_run()
    checkpoint = last_checkpoint(folder, resume) if resume else None
    if checkpoint:
        init_from = None  # the checkpoint has the run's own weights
    progress = checkpoints.read_progress(checkpoint) if checkpoint else Progress()
    progress.configured = same_configuration(progress.configured, unchangeable(cfg))
    progress.ema = same_average(progress.ema, settings.ema) if checkpoint else settings.ema
    kept = folder.kept(progress.step, progress.records) if resume else None

    device = machine.choose_device(settings.device)
    pages = memory.keep_pages() if settings.malloc == "keep" and device.type == "cpu" else False
    memory.reset_peak(device)
    precision, why = processes.agreed(choose_precision(settings, device, progress))
    progress.decisions["precision"] = precision
    rows = settings.micro_batch_size or settings.batch_size
    # keep the micro-batch size that fitted into memory, unless a different one is requested now
    if progress.decisions.get("micro_batch_size_asked") != rows:
        progress.decisions |= {"micro_batch_size": rows, "micro_batch_size_asked": rows}

    if init_from:
        tokenizer = checkpoints.read_from(init_from, "best", lambda path: checkpoints.tokenizer_of(path, cfg))
    else:
        tokenizer = checkpoints.tokenizer_of(checkpoint, cfg) if checkpoint else build(cfg.tokenizer)
    progress.tokenizer = tokenizer.fingerprint
    source = build(cfg.data)
    check_data(source, tokenizer)
    objective: Objective = build(cfg.objective)
    objective.check(source)
    with memory.running_out("the model was built"):
        # shards go to the device one by one
        model = (rebuild_model if resume else new_model)(cfg, tokenizer).to("cpu" if is_sharded else device)
        checked = check_laws(cfg) if settings.check and processes.is_first else None
    refuse_unequal_passes(objective, model, processes)
    set_recompute(model, settings.recompute)
    if init_from:
        checkpoints.read_from(init_from, "best", lambda path: checkpoints.load_weights(path, model))
    average = Average(model, settings.ema) if settings.ema else None
    if checkpoint and average:
        checkpoints.load_average(checkpoint, model, average)
    elif checkpoint:
        checkpoints.load_weights(checkpoint, model)
    processes.synchronise(model)
    # those of a sharded model couldn't be counted later
    flops = (
        flops_per_token(model, cfg.data.seq_len)
        if is_sharded
        else needed_flops(settings, model, cfg.data.seq_len)
    )
    budget = Budget.of(settings, settings.batch_size * cfg.data.seq_len, flops)
    gathered = None
    if is_sharded:
        from minllm.training.sharding import Sharded, shard_average

        objective = Sharded(model, objective, device, processes.place.size)
        average, gathered = average and shard_average(average, model), objective.gathered
    optimizer = build(cfg.optim, model)
    schedule = build(cfg.schedule)
    schedule.check(budget.total_steps)
    if checkpoint:
        checkpoints.load_optimizer(checkpoint, optimizer)
        if budget.spent(progress.step, progress.seconds) and folder.is_finished(progress.step):
            raise budget.used_up(progress.step, progress.seconds)
        budget.go_on(progress.step, progress.seconds, progress.position, progress.total_steps)

    # last, because encoding a corpus takes time: everything that can be rejected has been checked
    corpus = processes.first_per_machine(lambda: open_data(source, tokenizer))
    objective.check_corpus(corpus)
    progress.data = same_data(progress.data, corpus.store.metadata["splits"])
    validation = corpus.validation(rows)
    run = Run(
        seed=cfg.seed,
        settings=settings,
        folder=folder,
        logger=build(cfg.logger) if processes.is_first else Silent(),
        model=model,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        budget=budget,
        progress=progress,
        train_batches=corpus.train(settings.batch_size, cfg.seed, share),
        validation=validation,
        floor_bpb=corpus.floor_bits_per_byte,
        sample=sampler(cfg, model, tokenizer, objective, source) if processes.is_first else list,
        device=device,
        precision=precision,
        flops_per_token=flops,
        pending=PendingMetrics(LAG if device.type == "cuda" else 0),
        tokens_per_step=settings.batch_size * cfg.data.seq_len,
        validation_text=corpus.store.metadata["validation_text"],
        document_bytes=validation.documents.sizes(tokenizer.byte_lengths),
        average=average,
        processes=processes,
        gathered=gathered,
    )
    if kept:
        run.recorded = kept.recorded
        run.is_sampled = kept.sample is not None
        run.latest_samples = [("", kept.sample)] if run.is_sampled else []
    params = sum(p.numel() for p in model.parameters())
    notes = [
        f"{'Continuing' if resume else 'Training'} in {run_dir}",
        f"{params:,} parameters; {device}, {torch.get_num_threads()} threads; {precision}: {why}.",
        f"{processes.place.size} processes share each batch (train.parallel={settings.parallel})."
        if processes.are_several
        else None,
        in_words(cfg, model),
        checked or UNCHECKED,
        f"Rows of {source.seq_len} tokens, packing={source.packing}: {corpus.layout.shares()}.",
        "glibc keeps freed pages, which speeds up steps but uses some memory (train.malloc=default turns this off)."
        if pages
        else None,
        f"Weights are initialised from {init_from}." if init_from else None,
        f"Evaluations, samples and model.safetensors use the exponential moving average of the weights"
        f" (train.ema={settings.ema:g})."
        if average
        else None,
        f"Continuing from step {progress.step}." if checkpoint else None,
        "The run had no checkpoint yet, so it starts from the beginning."
        if resume and not checkpoint
        else None,
        f"{' and '.join(kept.changed)} in {run_dir} changed after the checkpoint was saved, so lines may be missing."
        if kept and kept.changed
        else None,
        f"No samples will be written. {model.cannot_generate}" if model.cannot_generate else None,
    ]
    return run, tokenizer, notes


def refuse_unequal_passes(objective: Objective, model: LM, processes: Processes) -> None:
    """Raise UserError if the processes wait for each other in each pass, but may make different passes."""
    if not (processes.are_several and objective.passes_vary):
        return
    if processes.share_parameters:
        raise UserError(
            "With this objective each process makes passes of its own, in which it can't gather shards: type"
            " train.parallel=ddp."
        )
    if any(getattr(module, "sums_in_passes", False) for module in model.modules()):
        raise UserError(
            "With this objective each process makes passes of its own, so the experts' balance loss and z loss can't"
            " be those of the whole batch: train with one process, or with model/mlp=moe_sigmoid."
        )


def choose_precision(settings: Settings, device: torch.device, progress: Progress) -> tuple[Any, str]:
    """Return the requested precision, else the run's earlier choice, else what suits the machine."""
    before = progress.decisions.get("precision")
    if settings.precision == "auto" and before:
        return before, "as before"
    precision, why = machine.choose_precision(settings.precision, device)
    return precision, why


def budget_of(settings: Settings, model: LM, seq_len: int) -> Budget:
    return Budget.of(settings, settings.batch_size * seq_len, needed_flops(settings, model, seq_len))


def needed_flops(settings: Settings, model: LM, seq_len: int) -> float:
    """Return the FLOPs per token if there is a budget of FLOPs, otherwise NaN: counting takes a second or two."""
    return math.nan if settings.flops is None else flops_per_token(model, seq_len)


def sampler(
    cfg: DictConfig, model: LM, tokenizer: Tokenizer, objective: Objective, source: Source
) -> Callable[[], list[tuple[str, str]]]:
    """Return a function that writes a new text, or a target for a given part, with the model's current weights."""
    if model.cannot_generate:
        return lambda: []
    sampling = build(cfg.sample)
    prompt = functools.cache(lambda: first_given(source, tokenizer))
    return lambda: [(prompt(), text) for text in objective.generate(model, tokenizer, [prompt()], sampling)]


def first_given(source: Source, tokenizer: Tokenizer) -> str:
    """Return the first given part of the validation documents that leaves room in a row; "" if there is none."""
    pairs = source.pairs("val") if isinstance(source, PairSource) else ()
    given = (pair.given for pair in pairs)
    return next((text for text in given if 2 * len(tokenizer.encode(text)) < source.seq_len), "")


def summarise(run: Run, cfg: DictConfig) -> dict:
    """Return the run's summary: losses in nats per token and bits per byte, times in seconds, memory in bytes."""
    progress = run.progress
    # the cost of a sharded model is that of a model with the same shapes
    model = run.model if run.gathered is None else shapes_of(cfg, run.objective.text_size(run.model))
    peak = memory.peak_bytes(run.device)  # before counting the costs, which itself takes memory
    costs = cost(model, cfg.data.seq_len)
    tokens_per_second = progress.tokens_per_second(run.tokens_per_step)
    return {
        "val_loss": progress.val_loss,
        "val_bpb": progress.val_bpb,
        "val_bound": run.objective.bound,
        "ema": run.settings.ema,
        **above_floor(progress.val_bpb, run.floor_bpb, run.validation.bytes),
        "best": progress.best,
        **asdict(costs),
        "steps": progress.step,
        "tokens": progress.tokens,
        "tokens_per_second": tokens_per_second,
        "mfu": mfu(run, tokens_per_second, costs.flops_per_token),
        "peak_flops": peak_of(run).flops,
        "peak_flops_source": peak_of(run).source,
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
    """Return the closing lines of the log."""
    bound = summary["val_bound"]
    loss, bpb = (units.marked(f"{summary[key]:.4f}", bound) for key in ("val_loss", "val_bpb"))
    floor = ""
    if "floor_bpb" in summary:
        above = units.marked(f"{summary['bpb_above_floor']:.4f}", bound)
        floor = f", {above} above the corpus floor"
    source = {"datasheet": "the datasheet's", "measured": "a measured"}[summary["peak_flops_source"]]
    peak = f"{source} {summary['peak_flops'] / 1e12:.3g}"
    return [
        "",
        *[(prompt + text).strip() for prompt, text in run.latest_samples],
        "",
        f"Validation: {loss} nats per token, {bpb} bits per byte{floor}"
        f"{', of the averaged weights' if summary['ema'] else ''}.",
        *[BOUND_NOTE] * (bound == "upper"),
        *[LOOKAHEAD_WARNING] * bool(run.model.cannot_generate),
        *([summary["below_floor"]] if "below_floor" in summary else []),
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens, {summary['tokens_per_second']:,.0f} tokens/s"
        f" (mfu {summary['mfu']:.1%} of {peak} TFLOP/s),"
        f" {summary['wall_seconds']:.0f} s, peak memory {summary['peak_memory_bytes'] / 2**20:,.0f} MiB.",
        f"The run is in {run.folder.path}",
    ]
