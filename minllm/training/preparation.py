"""From a configuration to a run that is ready to train; what can't be trained is rejected."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from minllm.data.batches import check_data, open_data
from minllm.data.source import PairSource, Source
from minllm.errors import UserError
from minllm.laws.laws import UNCHECKED, check_laws
from minllm.model.build import new_model, rebuild_model
from minllm.model.cost import flops_per_token
from minllm.model.kernels import own
from minllm.model.lm import LM
from minllm.model.size import in_words
from minllm.model.stack import set_recompute
from minllm.objective import Objective
from minllm.runs.find import unchangeable
from minllm.runs.folder import RunDir
from minllm.runs.records import Kept
from minllm.schema.building import build
from minllm.tokenizer import Tokenizer
from minllm.training import checkpoints, machine, memory
from minllm.training.answers import answers_of, refuse_hidden_answers, why_none
from minllm.training.averaging import Average
from minllm.training.branching import Branch, branch_of, branch_steps
from minllm.training.budget import Budget
from minllm.training.checkpoints import Progress
from minllm.training.graphs import check_graphs
from minllm.training.loggers import Silent
from minllm.training.parallel import ALONE, Processes
from minllm.training.pending import LAG, PendingMetrics
from minllm.training.resuming import last_checkpoint, same_average, same_configuration, same_data
from minllm.training.run import Run
from minllm.training.settings import Settings
from minllm.training.step import Diverged

PAGES_NOTE = (
    "glibc keeps freed pages, which makes steps faster but uses some memory (train.malloc=default: off)."
)


def prepare(
    cfg: DictConfig,
    run_dir: Path,
    resume: str | None,
    init_from: str | None,
    branch_from: str | None = None,
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
    branch = begun_elsewhere(cfg, branch_from, folder) if branch_from and not checkpoint else None
    progress = checkpoints.read_progress(checkpoint) if checkpoint else Progress()
    if branch:
        checkpoint, progress = branch.checkpoint, branch.progress
    if checkpoint:
        init_from = None  # the checkpoint has the run's own weights
    progress.configured = same_configuration(progress.configured, unchangeable(cfg))
    progress.ema = same_average(progress.ema, settings.ema) if checkpoint else settings.ema
    kept = branch.kept if branch else folder.kept(progress.step, progress.records) if resume else None

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
    refuse_hidden_answers(source, objective)
    if settings.stop_at_accuracy is not None and (why := why_none(source, objective)):
        raise UserError(f"train.stop_at_accuracy needs a val_accuracy, but {why}. Leave it out.")
    with memory.running_out("the model was built"):
        # shards go to the device one by one
        model = (rebuild_model if resume else new_model)(cfg, tokenizer).to("cpu" if is_sharded else device)
        checked = check_laws(cfg) if settings.check and processes.is_first else None
    refuse_unequal_passes(objective, model, processes)
    check_graphs(settings, model, objective, device)
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
        answers=answers_of(validation, objective, source),
        document_bytes=validation.documents.sizes(tokenizer.byte_lengths),
        average=average,
        processes=processes,
        gathered=gathered,
        branch_steps=branch_steps(
            settings, schedule, budget.total_steps, settings.batch_size * cfg.data.seq_len
        ),
        branch=branch,
    )
    if kept:
        run.recorded = kept.recorded
        run.is_sampled = kept.sample is not None
        run.latest_samples = [("", kept.sample)] if run.is_sampled else []
    notes = [
        f"{'Continuing' if resume else 'Training'} in {run_dir}",
        device_note(run, why),
        kernels_note(device),
        processes_note(run),
        in_words(cfg, model),
        checked or UNCHECKED,
        f"Rows of {source.seq_len} tokens, packing={source.packing}: {corpus.layout.shares()}.",
        PAGES_NOTE if pages else None,
        f"Weights are initialised from {init_from}." if init_from else None,
        average_note(run),
        *continuation_notes(run, resume, checkpoint, kept),
        f"No samples will be written. {model.cannot_generate}" if model.cannot_generate else None,
    ]
    return run, tokenizer, notes


# ---- the first lines of the log ------------------------------------------------------------------


def device_note(run: Run, why: str) -> str:
    params = sum(p.numel() for p in run.model.parameters())
    threads = torch.get_num_threads()
    return f"{params:,} parameters; {run.device}, {threads} threads; {run.precision}: {why}."


def kernels_note(device: torch.device) -> str | None:
    if device.type != "cuda" or own.WHY_NOT is None:
        return None
    return f"minllm's own GPU kernels aren't used, because {own.WHY_NOT}: slower, and needs more memory."


def processes_note(run: Run) -> str | None:
    if not run.processes.are_several:
        return None
    return f"{run.processes.place.size} processes share each batch (train.parallel={run.settings.parallel})."


def average_note(run: Run) -> str | None:
    if run.average is None:
        return None
    return (
        "Evaluations, samples and model.safetensors use the exponential moving average of the weights"
        f" (train.ema={run.settings.ema:g})."
    )


def continuation_notes(
    run: Run, resume: str | None, checkpoint: Path | None, kept: Kept | None
) -> list[str | None]:
    if run.branch:
        return [f"Branching from step {run.progress.step} of {checkpoints.run_of(run.branch.checkpoint)}."]
    return [
        f"Continuing from step {run.progress.step}." if checkpoint else None,
        "The run had no checkpoint yet, so it starts from the beginning."
        if resume and not checkpoint
        else None,
        f"{' and '.join(kept.changed)} in {run.folder.path} changed after the checkpoint was saved, so lines may be"
        " missing."
        if kept and kept.changed
        else None,
    ]


# ---- its parts -----------------------------------------------------------------------------------


def begun_elsewhere(cfg: DictConfig, branch_from: str, folder: RunDir) -> Branch:
    """Return where a run branches off. If its trunk diverged before, the folder tells so, as that of a diverged run."""
    try:
        return branch_of(cfg, branch_from)
    except Diverged as error:
        with folder.alone():
            folder.begin(cfg, build(cfg.tokenizer))
            folder.note(str(error))
        raise


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
