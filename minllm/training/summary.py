"""The end of a run: what summary.json has, and the closing lines of the log."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from minllm.data.floor import above_floor
from minllm.model.build import shapes_of
from minllm.model.cost import cost
from minllm.page import units
from minllm.training import memory
from minllm.training.answers import described
from minllm.training.evaluation import BOUND_NOTE, LOOKAHEAD_WARNING
from minllm.training.run import Run
from minllm.training.state import Progress
from minllm.training.utilisation import mfu, peak_of


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
        **(progress.answers or {}),
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
        **trained_here(progress),
        "peak_memory_bytes": peak,
        "seed": run.seed,
        "validation_text": run.validation_text,
        "device": str(run.device),
        "decisions": progress.decisions,
        "checked": run.settings.check,
        "choices": OmegaConf.to_container(cfg.choices),
    }


def trained_here(progress: Progress) -> dict[str, Any]:
    """Return what a run that branched from another one has trained itself: the other figures count the trunk's part."""
    if progress.trunk is None:
        return {}
    since = {key: getattr(progress, key) - progress.trunk[key] for key in ("tokens", "seconds")}
    return {"branch": {"from": progress.trunk["run"], "step": progress.trunk["step"], **since}}


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
    answers = run.progress.answers
    right = f", {described(answers)}" if answers else ""
    return [
        "",
        *[(prompt + text).strip() for prompt, text in run.latest_samples],
        "",
        f"Validation: {loss} nats per token, {bpb} bits per byte{floor}{right}"
        f"{', of the averaged weights' if summary['ema'] else ''}.",
        *[BOUND_NOTE] * (bound == "upper"),
        *[LOOKAHEAD_WARNING] * bool(run.model.cannot_generate),
        *([summary["below_floor"]] if "below_floor" in summary else []),
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens, {summary['tokens_per_second']:,.0f} tokens/s"
        f" (mfu {summary['mfu']:.1%} of {peak} TFLOP/s),"
        f" {summary['wall_seconds']:.0f} s, peak memory {summary['peak_memory_bytes'] / 2**20:,.0f} MiB.",
        f"The run is in {run.folder.path}",
    ]
