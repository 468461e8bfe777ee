"""Checkpoints: safetensors, an optimizer state that holds tensors and numbers only, and JSON.

    checkpoints/step-000100/
        model.safetensors
        optimizer.pt        loaded with weights_only=True: nothing is unpickled
        state.json          how far the run is, its best evaluation, and what `auto` has chosen

A checkpoint is written in a folder beside and renamed, so that one that has its name is whole.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from minllm import runs
from minllm.config import build
from minllm.errors import UserError
from minllm.model.build import rebuild_model
from minllm.model.lm import LM
from minllm.tokenizer import Tokenizer, of_run
from minllm.training import memory
from minllm.training.files import write_text
from minllm.training.rundir import to_json

LARGEST = 2**62
"""Above any number of steps or tokens."""


@dataclass
class Progress:
    """How far a run is: all that a checkpoint must know besides weights and optimizer."""

    step: int = 0
    tokens: int = 0
    """Positions trained on, padding included: steps × batch_size × seq_len."""
    seconds: float = 0.0
    position: float = 0.0
    """Where on its schedule the run is, in steps (see Budget)."""
    total_steps: int | None = None
    before: list[float] | None = None
    """`position` and `total_steps` before the latest step; None in older checkpoints."""
    timed_steps: int = 0
    timed_seconds: float = 0.0
    """The steps whose pace counts, and the time they took: all but those that compile."""
    val_loss: float | None = None
    val_bpb: float | None = None
    best: dict | None = None
    """The step and val_loss of the best evaluation so far."""
    tokenizer: str | None = None
    """The fingerprint of the tokenizer whose tokens the model reads; None in checkpoints of before."""
    data: dict | None = None
    """How many documents, tokens and bytes it learns from, and their hash; a resumed run learns from the same."""
    lr: float | None = None
    grad_norm: float | None = None
    """Of the latest step."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the steps since the last line of metrics."""
    recent_figures: list[dict[str, float]] = field(default_factory=list)
    """What modules reported of the same steps (`minllm.model.steps`)."""
    decisions: dict = field(default_factory=dict)
    """What `auto` has chosen; a resumed run chooses the same."""

    def tokens_per_second(self, tokens_per_step: int) -> float:
        """Return the pace of training alone, without evaluations, checkpoints and compiling."""
        if not self.timed_steps:
            return self.tokens / self.seconds if self.seconds else 0.0
        return self.timed_steps * tokens_per_step / self.timed_seconds


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, keep: int
) -> None:
    """Write a checkpoint in `folder`, then remove all but the newest `keep` and the best.

    Raises:
        OSError: the folder can't be written, or the disk is full; earlier checkpoints are as they were.
    """
    target = folder / f"step-{progress.step:06d}"
    beside = folder / f".{target.name}.partial"
    remove_partial(folder)
    beside.mkdir(parents=True)
    try:
        with _write_errors():
            save_model(model, str(beside / "model.safetensors"))
            with (beside / "optimizer.pt").open("wb") as file:
                torch.save(optimizer.state_dict(), file)
        (beside / "state.json").write_text(to_json(asdict(progress)), encoding="utf-8")
        _sync(beside)
        os.replace(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    tidy(folder, progress, keep)  # only now: `progress.best` may be the checkpoint that was just written


def tidy(folder: Path, progress: Progress, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and the best, and what a killed run left half written or removed."""
    best = progress.best["step"] if progress.best else None
    for old in all_in(folder)[:-keep]:
        if step_of(old) != best:
            old.rename(folder / f".{old.name}.partial")
    remove_partial(folder)


def remove_partial(folder: Path) -> None:
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial)


def save_progress(folder: Path, progress: Progress) -> None:
    """Write what a step has found since its checkpoint was saved."""
    write_text(folder / f"step-{progress.step:06d}" / "state.json", to_json(asdict(progress)))


def is_saved(folder: Path, step: int) -> bool:
    return (folder / f"step-{step:06d}").is_dir()


def all_in(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, the oldest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def find(run: str | Path, which: Literal["last", "best"]) -> Path:
    """Return a checkpoint of a run.

    Args:
        run: the run's folder, or `latest`.
        which: `best` is the one with the lowest validation loss; the last where none has been evaluated.

    Raises:
        UserError: there is no such run, or it has no checkpoint.
    """
    folder = runs.find_run(run) / "checkpoints"
    found = all_in(folder)
    if not found:
        raise UserError(f"'{folder.parent}' has no checkpoint: it stopped before the first one was written.")
    if which == "best":
        best = read_progress(found[-1]).best
        return next((path for path in found if best and step_of(path) == best["step"]), found[-1])
    return found[-1]


def run_of(checkpoint: Path) -> Path:
    return checkpoint.parent.parent


def read_progress(checkpoint: Path) -> Progress:
    """Return how far the run was. UserError if the checkpoint is damaged."""
    with _damage(checkpoint, "state.json") as path:
        progress = Progress(**json.loads(path.read_text(encoding="utf-8")))
        if wrong := wrong_values(progress, step_of(checkpoint)):
            raise UserError(
                f"{path} is damaged: {wrong[0]} has a value that no run writes. {cure(checkpoint)}"
            )
        return progress


def wrong_values(progress: Progress, step: int) -> list[str]:
    """Return the names of the values that a checkpoint of `step` can't have."""
    best, decisions = progress.best, progress.decisions
    fits = {
        "step": is_count(progress.step) and progress.step == step,
        "tokens": is_count(progress.tokens),
        "seconds": is_time(progress.seconds) and (progress.seconds > 0 or not progress.tokens),
        "position": is_time(progress.position) and progress.position <= LARGEST,
        "total_steps": progress.total_steps is None
        or (is_count(progress.total_steps) and progress.total_steps > 0),
        "before": progress.before is None
        or (isinstance(progress.before, list) and len(progress.before) == 2)
        and (all(map(is_time, progress.before)) and progress.before[1] > 0),
        "timed_steps": is_count(progress.timed_steps),
        "timed_seconds": is_time(progress.timed_seconds)
        and (progress.timed_seconds > 0 or not progress.timed_steps),
        "val_loss": progress.val_loss is None or is_number(progress.val_loss),
        "val_bpb": progress.val_bpb is None or is_number(progress.val_bpb),
        "best": best is None
        or (isinstance(best, dict) and is_count(best.get("step")) and is_number(best.get("val_loss"))),
        "tokenizer": progress.tokenizer is None or isinstance(progress.tokenizer, str),
        "data": progress.data is None or isinstance(progress.data, dict),
        "lr": progress.lr is None or is_number(progress.lr),
        "grad_norm": progress.grad_norm is None or is_number(progress.grad_norm),
        "recent_losses": isinstance(progress.recent_losses, list)
        and all(map(is_number, progress.recent_losses)),
        "recent_figures": isinstance(progress.recent_figures, list)
        and all(
            isinstance(one, dict) and all(map(is_number, one.values())) for one in progress.recent_figures
        ),
        "decisions": isinstance(decisions, dict)
        and decisions.get("precision", "fp32") in ("fp32", "bf16")
        and isinstance(decisions.get("compile", False), bool)
        and all(
            is_count(decisions.get(name, 1)) and decisions.get(name, 1) > 0
            for name in ("micro_batch_size", "micro_batch_size_asked")
        ),
    }
    return [name for name, fit in fits.items() if not fit]


def is_number(value: object) -> bool:
    """Whether a value is a number. It may be NaN, as the validation loss of a model that diverged."""
    return type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def is_time(value: object) -> bool:
    return is_number(value) and math.isfinite(value) and value >= 0


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Fill `model` with a checkpoint's weights.

    Raises:
        UserError: the checkpoint is damaged, or is of another architecture.
    """
    with _damage(checkpoint, "model.safetensors") as path:
        shapes = _shapes(path)
    for name, tensor in model.state_dict().items():
        if name in shapes and shapes[name] != tuple(tensor.shape):
            raise UserError(
                f"{path} is of another architecture: its {name} has shape {shapes[name]}, and this model's has"
                f" {tuple(tensor.shape)}. Its options are in {run_of(checkpoint)}/config.yaml."
            )
    missing, unexpected = load_model(model, path, strict=False, device=str(next(model.parameters()).device))
    if missing or unexpected:
        words = [f"{name} is missing" for name in missing] + [
            f"{name} is not in this model" for name in unexpected
        ]
        raise UserError(
            f"{path} is of another architecture ({', '.join(words[:3])}). Give the options it was made with; they are"
            f" in {run_of(checkpoint)}/config.yaml."
        )


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Give `optimizer` the state it had. UserError if the checkpoint is damaged."""
    with _damage(checkpoint, "optimizer.pt") as path:
        optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def load(
    run: str | Path,
    *,
    which: Literal["best", "last"] = "best",
    device: torch.device | str = "cpu",
    extensions: Sequence[str] = (),
) -> tuple[LM, Tokenizer, DictConfig]:
    """Return the model of a run, its tokenizer and its configuration.

    Args:
        run: the run's folder, or `latest`.
        which: the checkpoint with the lowest validation loss, or the last one.
        device: where the model's parameters are put.
        extensions: packages besides minllm that the run's configuration may take code from; name only what you trust.

    Returns:
        (model, tokenizer, cfg); the model is in evaluation mode.

    Raises:
        UserError: there is no such run, it has no checkpoint, or the checkpoint is damaged.
    """
    cfg = runs.read_run(run, extensions)
    return *load_as(cfg, run, which, device), cfg


def load_as(
    cfg: DictConfig,
    run: str | Path,
    which: Literal["best", "last"] = "best",
    device: torch.device | str = "cpu",
) -> tuple[LM, Tokenizer]:
    """Return a run's model and tokenizer with the options of `cfg`, which may differ from those it was made with."""
    checkpoint = find(run, which)
    tokenizer = tokenizer_of(checkpoint, cfg)
    model = rebuild_model(cfg, tokenizer).to(device)
    load_weights(checkpoint, model)
    return model.eval(), tokenizer


def tokenizer_of(checkpoint: Path, cfg: DictConfig) -> Tokenizer:
    """Return the tokenizer that a checkpoint was trained with, whichever `cfg` names: if it's another, it is refused.

    Raises:
        UserError: `cfg` has another tokenizer, or the one that the run kept isn't what it was.
    """
    run = run_of(checkpoint)
    saved = runs.read_run(run, cfg.extensions)
    kept = of_run(run, saved)
    before = read_progress(checkpoint).tokenizer
    if before not in (None, kept.fingerprint):
        raise UserError(
            f"The tokenizer in {run / 'tokenizer'} ({kept.fingerprint[:8]}) isn't the one that {checkpoint.name} was"
            f" trained with ({before[:8]}). Put that one's files back; the model can't read another's tokens."
        )
    # what is typed for the tokenizer may call the same one by another name
    asked = kept if unresolved(cfg.tokenizer) == unresolved(saved.tokenizer) else build(cfg.tokenizer)
    if asked.fingerprint != kept.fingerprint:
        raise UserError(
            f"The model of {run} reads tokens of tokenizer={saved.choices.get('tokenizer')} ({kept.fingerprint[:8]}),"
            f" and those of tokenizer={cfg.choices.get('tokenizer')} ({asked.fingerprint[:8]}) would mean nothing to"
            " it. Leave out what you typed for the tokenizer: a run keeps its own."
        )
    return kept


def unresolved(node: DictConfig) -> Any:
    """Return a node as it was chosen: what it refers to, such as the data it was made from, may be elsewhere now."""
    return OmegaConf.to_container(node, resolve=False)


@contextmanager
def _damage(checkpoint: Path, name: str) -> Iterator[Path]:
    """Turn any failure to read a file of a checkpoint into a sentence that names the file and the cure."""
    path = checkpoint / name
    try:
        yield path
    except UserError:
        raise
    # a damaged file may fail in as many ways as there are parsers; none of them is a bug of ours
    except Exception as error:
        if memory.ran_out(error):
            raise
        if isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise UserError(f"{path} can't be read: {error.strerror}.") from error
        what = (
            "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({type(error).__name__})"
        )
        raise UserError(f"{path} {what}. {cure(checkpoint)}") from error


def cure(checkpoint: Path) -> str:
    """Return what can be done about a damaged checkpoint."""
    earlier = [other for other in all_in(checkpoint.parent) if step_of(other) < step_of(checkpoint)]
    if earlier:
        return f"Remove the folder {checkpoint}, and step {step_of(earlier[-1])} takes its place."
    return "The run has no earlier checkpoint, so train it again."


@contextmanager
def _write_errors() -> Iterator[None]:
    """safetensors and torch report a failed write in exceptions of their own; raise the OSError that is inside."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        inside = error.__context__
        number = re.search(r"os error (\d+)", str(error))
        if isinstance(inside, OSError):
            raise inside from error
        if number:
            raise OSError(int(number[1]), str(error)) from error
        raise


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (it is no dict)


def _sync(folder: Path) -> None:
    """Wait until the files are on the disk, so that the rename can't overtake them."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
