"""`python run.py task=bench`: how fast minllm is on this machine, compared with transformers' models of the same shape.

The machine may be shared, so contestants take turns (A B C, A B C, …) and are compared turn by turn: a single
measurement may be off, but ratios of measurements taken next to each other are still reliable.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from minllm.bench.contestants import SETTINGS, SHAPES, Name, Setting, Shape, config
from minllm.bench.data import encodings, made_rows
from minllm.bench.mixers import (
    OURS_AS_THEIRS,
    THEIRS,
    at,
    check_lengths,
    chosen_mixers,
    grown_lengths,
    mixer_jobs,
)
from minllm.bench.references import ATTENTION
from minllm.bench.report import Figure, MixerRow, Ratio, Report
from minllm.bench.startup import first_step_seconds, import_seconds
from minllm.bench.worker import Job, Worker
from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.model.cost import cost
from minllm.runs.folder import environment, to_json, write_text
from minllm.schema.options import Count, Positive
from minllm.training.machine import choose_device, choose_precision
from minllm.training.utilisation import product_flops, published

TURNS, MIXER_TURNS = 5, 3  # mixers have eight or more contestants
NEW_TOKENS = 256
GENERATED_ROWS = (1, 16)
LIMIT_SIZE = 2048

MINLLM, THEIRS_KEPT = "minllm", "transformers, same malloc"

AT_LEAST = {
    ("S1", "eager fp32"): 1.4,
    ("S1", "compiled bf16"): 2.0,
    ("S3", "eager fp32"): 1.0,
    ("S3", "compiled bf16"): 1.15,
}
"""The target ratio of minllm's training tokens per second to transformers', on a CPU."""
AT_LEAST_ON_GPU = {("S1", "compiled bf16"): 3.0, ("GPT2", "compiled bf16"): 1.0}
AT_LEAST_OF_PEAK = {("GPT2", "compiled bf16"): 0.45}
"""The target share of a GPU's peak."""
AT_LEAST_GENERATED = 1.5
AT_MOST_MEMORY = 1.0
AT_MOST_STARTUP = 3.0
AT_LEAST_OF_ATTENTION = 0.25
"""The target ratio of a mixer's tokens per second to attention's, at the shape's own length."""
AT_LEAST_OF_THEIRS = 2.0
"""The target ratio of a mixer's tokens per second to that of transformers' class with the same mixer."""
AT_MOST_GROWN = 1.5
"""The largest allowed ratio of a recurrent mixer's seconds per token at the longest sequence to the shape's own."""

MIXERS_SHAPE = SHAPES["S3"]
MIXERS_NOTE = (
    "Mixers: T is the sequence length; each step has the same number of tokens at every length. transformers' classes"
    " are never compiled."
)


def bench(
    cfg: DictConfig,
    run_dir: Path,
    *,
    measure: list[Literal["training", "generation", "startup", "mixers", "data"]],
    shapes: list[Literal["S1", "S3", "GPT2"]] | None,
    settings: list[Literal["eager_fp32", "compiled_fp32", "eager_bf16", "compiled_bf16"]],
    seconds: Positive,
    mixers: list[str] | None,
    lengths: list[Count],
    rows: Count | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None,
) -> dict[str, Any]:
    """Run the benchmarks, print a report and write bench.json; return its contents.

    Args:
        measure: what to measure. Memory is measured together with training.
        shapes: the sizes, see `minllm.bench.contestants.SHAPES`; null means S1 and S3, and on a GPU GPT2 too.
        settings: precision and compilation. If bf16 is slow, fp32 is measured instead, and the report says so.
        seconds: how long each contestant trains in each setting, in `TURNS` turns of at least one step.
        mixers: the options of model/rec to compare with attention; null means all.
        lengths: the sequence lengths for mixers and for rows of data.
        rows: the rows of a batch, for all shapes; null means each shape's own.
        device: null means train.device.

    Raises:
        UserError: transformers isn't installed, a mixer doesn't exist, a length doesn't divide the tokens of a step, or
            the tokenizer isn't one that minllm trains.
    """
    recs = chosen_mixers(mixers)
    if "mixers" in measure:
        check_lengths(lengths, MIXERS_SHAPE)
    if {"training", "generation", "mixers"} & set(measure):
        require_transformers()
    where = choose_device(device or cfg.train.device)
    names = shapes or ["S1", "S3", *(["GPT2"] if where.type == "cuda" else [])]
    sizes = {name: SHAPES[name] if rows is None else replace(SHAPES[name], batch_size=rows) for name in names}
    report = Report(machine(where, sizes))
    run_dir.mkdir(parents=True, exist_ok=True)
    if {"training", "mixers"} & set(measure):
        chosen, report.notes = settings_for(settings, where)
    if "training" in measure:
        if any(setting.compiled for setting in chosen):
            report.notes.append("Compiled: minllm as in its own runs, transformers by plain torch.compile.")
        for setting in chosen:
            for name in sizes:
                training(report, name, sizes[name], setting, where, seconds / TURNS)
    if "generation" in measure:
        for name in sizes:
            for generated in GENERATED_ROWS:
                generation(report, name, sizes[name], where, generated, NEW_TOKENS)
    if "mixers" in measure:
        report.notes.append(MIXERS_NOTE)
        for setting in chosen:
            for mixer in [ATTENTION, *recs]:
                row = mixer_row(mixer, lengths, MIXERS_SHAPE, setting, where, seconds / TURNS)
                report.mixers.append(row)
    if "data" in measure:
        report.encodings, report.rows = encodings(cfg), made_rows(cfg, lengths)
    if "startup" in measure:
        startup(report)

    print("\n".join(report.lines()))
    write_text(run_dir / "bench.json", to_json(report.as_dict()))
    print(f"All results are in {run_dir / 'bench.json'}")
    return report.as_dict()


def training(
    report: Report, name: str, shape: Shape, setting: Setting, device: torch.device, turn_seconds: float
) -> None:
    """Train the contestants in turns; report their speed and memory."""
    what = f"{name} {setting}"
    cfg = config(shape, setting)
    model = build_model(cfg, SimpleNamespace(vocab_size=shape.vocab_size))
    flops_per_token = cost(model, shape.seq_len).flops_per_token
    limits: list[float] = []
    with started(jobs_at(shape, setting, device)) as workers:
        speeds, peaks = trained(
            workers,
            what,
            turn_seconds,
            before_turn=lambda: limits.append(limit(setting, device)),
            at_once=len(workers) if device.type == "cuda" else 1,
        )

    report.limits[what] = statistics.median(limits)
    for who in workers:
        speed = statistics.median(speeds[who])
        share = speed * flops_per_token / report.limits[what]
        report.figures.append(Figure(f"{what}, training", who, speed, share, peaks[who]))
    for who in workers:
        if who != MINLLM:
            bounds = AT_LEAST_ON_GPU if device.type == "cuda" else AT_LEAST
            bound = bounds.get((name, str(setting))) if who == THEIRS else None
            words = f"{what}, training, {who}"
            report.ratios.append(Ratio.of(words, speeds[MINLLM], speeds[who], at_least=bound))
    if device.type == "cuda" and (name, str(setting)) in AT_LEAST_OF_PEAK:
        of_peak = [speed * flops_per_token for speed in speeds[MINLLM]], limits
        bound = AT_LEAST_OF_PEAK[name, str(setting)]
        report.ratios.append(Ratio.of(f"{what}, training, the GPU's peak", *of_peak, at_least=bound))
    words = f"{what}, peak memory, {THEIRS}"
    report.ratios.append(Ratio.of(words, [peaks[MINLLM]], [peaks[THEIRS]], at_most=AT_MOST_MEMORY))


def generation(
    report: Report, name: str, shape: Shape, device: torch.device, rows: int, new_tokens: int
) -> None:
    """Have the contestants continue short prompts in turns; report their speed."""
    what = f"{name}, generating {rows} x {new_tokens}"
    with started(jobs_at(shape, Setting("fp32", compiled=False), device)) as workers:
        speeds: dict[str, list[float]] = {who: [] for who in workers}
        for worker in workers.values():
            worker.ask("generate", rows=rows, new_tokens=2)
        for _ in tqdm(range(TURNS), what, leave=False, disable=None):
            for who, worker in workers.items():
                answer = worker.ask("generate", rows=rows, new_tokens=new_tokens)
                speeds[who].append(answer["tokens"] / answer["seconds"])
    for who in workers:
        report.figures.append(Figure(what, who, statistics.median(speeds[who])))
    ratio = Ratio.of(f"{what}, {THEIRS}", speeds[MINLLM], speeds[THEIRS], at_least=AT_LEAST_GENERATED)
    report.ratios.append(ratio)


def startup(report: Report) -> None:
    """Measure the time to the first logged step, and that of importing torch alone."""
    first_step_seconds()  # warm-up: builds the token store and fills the file cache
    firsts, imports = [], []
    for _ in tqdm(range(TURNS), "start-up", leave=False, disable=None):
        imports.append(import_seconds())
        firsts.append(first_step_seconds())
    report.startup["From the command to the first logged step"] = statistics.median(firsts)
    report.startup["python -c 'import torch'"] = statistics.median(imports)
    report.ratios.append(Ratio.of("start-up, import torch", firsts, imports, at_most=AT_MOST_STARTUP))


def mixer_row(
    mixer: str,
    lengths: Sequence[int],
    shape: Shape,
    setting: Setting,
    device: torch.device,
    turn_seconds: float,
) -> MixerRow:
    """Train a mixer in turns with itself at other lengths, attention, and transformers' class with the same mixer."""
    what = f"{mixer}, {setting}"
    with started(mixer_jobs(mixer, lengths, shape, setting, device)) as workers:
        speeds, peaks = trained(workers, what, turn_seconds, MIXER_TURNS)

    own, longest = speeds[at(mixer, shape.seq_len)], max(grown_lengths(shape))
    figures = [Figure(what, who, statistics.median(speeds[who]), None, peaks[who]) for who in workers]
    beside_attention, beside_theirs, growth = [], [], []
    for length in lengths if mixer != ATTENTION else []:
        bound = AT_LEAST_OF_ATTENTION if length == shape.seq_len else None
        pair = speeds[at(mixer, length)], speeds[at(ATTENTION, length)]
        beside_attention.append(Ratio.of(at(ATTENTION, length), *pair, at_least=bound))
    if THEIRS in workers:
        pair = speeds[OURS_AS_THEIRS], speeds[THEIRS]
        beside_theirs.append(Ratio.of(THEIRS, *pair, at_least=AT_LEAST_OF_THEIRS))
    for length in grown_lengths(shape):
        bound = AT_MOST_GROWN if length == longest and mixer != ATTENTION else None
        # a step has the same number of tokens at every length
        growth.append(Ratio.of(f"s/token, T {length}", own, speeds[at(mixer, length)], at_most=bound))
    return MixerRow(str(setting), mixer, figures, beside_attention, beside_theirs, growth)


def trained(
    workers: Mapping[str, Worker],
    what: str,
    turn_seconds: float,
    turns: int = TURNS,
    before_turn: Callable[[], object] = lambda: None,
    at_once: int = 1,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Have workers train in turns; return the tokens per second of each turn and the peak memory in bytes.

    Args:
        at_once: how many workers warm up at the same time; on a CPU they would be in each other's way.
    """
    speeds: dict[str, list[float]] = {who: [] for who in workers}
    with ThreadPoolExecutor(at_once) as pool:
        warmed = pool.map(lambda worker: worker.ask("warm_up"), workers.values())
        list(tqdm(warmed, f"{what}, warming up", len(workers), leave=False, disable=None))
    for _ in tqdm(range(turns), what, leave=False, disable=None):
        before_turn()
        for who, worker in workers.items():
            answer = worker.ask("train", seconds=turn_seconds)
            speeds[who].append(answer["tokens"] / answer["seconds"])
    return speeds, {who: worker.ask("memory")["bytes"] for who, worker in workers.items()}


@contextlib.contextmanager
def started(jobs: Mapping[str, Job]) -> Iterator[dict[str, Worker]]:
    """Start a process for each contestant."""
    with contextlib.ExitStack() as stack:
        yield {who: stack.enter_context(Worker(job)) for who, job in jobs.items()}


def jobs_at(shape: Shape, setting: Setting, device: torch.device) -> dict[str, Job]:
    """Return the contestants at a shape. minllm keeps its pages as in training, transformers doesn't.

    On a CPU, transformers with minllm's malloc settings competes too, to separate the effect of malloc.
    """
    on_cpu = device.type == "cpu"
    entries: list[tuple[str, Name, bool]] = [(MINLLM, "minllm", on_cpu), (THEIRS, "transformers", False)]
    if on_cpu:
        entries.append((THEIRS_KEPT, "transformers", True))
    return {
        who: Job(contestant, keep_pages, shape, setting, str(device))
        for who, contestant, keep_pages in entries
    }


def settings_for(names: Sequence[str], device: torch.device) -> tuple[list[Setting], list[str]]:
    """Return the distinct settings to measure, and notes about those that are replaced."""
    wanted = [SETTINGS[name] for name in names]
    if any(setting.precision == "bf16" for setting in wanted):
        fastest, why = choose_precision("auto", device)
        if fastest != "bf16":
            instead = [Setting("fp32", setting.compiled) for setting in wanted]
            return list(dict.fromkeys(instead)), [f"No bf16, fp32 instead: {why}."]
    return list(dict.fromkeys(wanted)), []


def limit(setting: Setting, device: torch.device) -> float:
    """Return the FLOP/s that matrix products can reach: a GPU's peak if it is known, or else measured now."""
    if device.type == "cuda":
        peak = published(torch.cuda.get_device_name(device), setting.precision, "highest")
        if peak is not None:
            return peak
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    return product_flops(LIMIT_SIZE if device.type == "cpu" else 4 * LIMIT_SIZE, device, dtype)


def machine(device: torch.device, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return only the properties of this machine that the results depend on."""
    here = environment()
    installed = importlib.util.find_spec("transformers")
    return {
        "cpu": here["cpu"],
        "threads": here["threads"],
        "gpu": here["gpu"] if device.type == "cuda" else None,
        "torch": here["versions"]["torch"],
        "transformers": importlib.metadata.version("transformers") if installed else None,
        "shapes": {name: asdict(shape) for name, shape in shapes.items()},
    }


def require_transformers() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "task=bench needs transformers, which isn't installed. Type pip install 'minllm[test]', or measure only"
            " the start-up time: 'measure=[startup]'."
        )
