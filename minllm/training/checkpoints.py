"""Checkpoints: safetensors, an optimizer state that holds tensors and numbers only, and JSON.

    checkpoints/step-000100/
        model.safetensors
        optimizer.pt        loaded with weights_only=True: nothing is unpickled
        state.json          how far the run is, its best evaluation, what `auto` has chosen, and checksums (state.py)

A checkpoint is written in a folder beside and renamed, so that one that has its name is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

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
from minllm.training.files import checksum, write_text
from minllm.training.optimizers import wrong_state
from minllm.training.rundir import to_json
from minllm.training.state import Progress, wrong_values

T = TypeVar("T")
PATIENCE = 100
"""How many checkpoints may be removed by the process that trains before one could be read."""
CHECKED = ("model.safetensors", "optimizer.pt")
WEIGHTS = ("F64", "F32", "F16", "BF16")


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
        progress.files = {name: checksum(beside / name) for name in CHECKED}
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


def read_from(run: str | Path, which: Literal["last", "best"], read: Callable[[Path], T]) -> T:
    """Return what `read` finds in a checkpoint. If training removes that one meanwhile, the next one is read.

    Raises:
        UserError: there is no such run, it has no checkpoint, or `read` raises it.
    """
    for _ in range(PATIENCE):
        before = all_in(runs.find_run(run) / "checkpoints")
        try:
            return read(find(run, which))
        except UserError:
            if all(checkpoint.is_dir() for checkpoint in before):
                raise
    return read(find(run, which))


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


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Fill `model` with a checkpoint's weights.

    Raises:
        UserError: the checkpoint is damaged, or is of another architecture.
    """
    with _damage(checkpoint, "model.safetensors") as path:
        refuse_changed(path)
        shapes = _shapes(path)  # raises ValueError for numbers that no weights are
    for name, tensor in model.state_dict().items():
        if name in shapes and shapes[name] != tuple(tensor.shape):
            raise UserError(
                f"{path} is of another architecture: its {name} has shape {shapes[name]}, and this model's has"
                f" {tuple(tensor.shape)}. Its options are in {run_of(checkpoint)}/config.yaml."
            )
    with _damage(checkpoint, "model.safetensors"):
        device = str(next(model.parameters()).device)
        missing, unexpected = load_model(model, path, strict=False, device=device)
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
        refuse_changed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if wrong := wrong_state(optimizer, state):
            raise UserError(f"{path} is damaged: {wrong}. {cure(checkpoint)}")
        optimizer.load_state_dict(state)


def refuse_changed(path: Path) -> None:
    """Raise UserError unless a checkpoint's file has the content that was saved."""
    known = read_progress(path.parent).files
    if known is not None and checksum(path) != known.get(path.name):
        raise UserError(
            f"{path} is damaged: its content isn't what was saved with {path.parent / 'state.json'}."
            f" {cure(path.parent)}"
        )


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
    tokenizer = read_from(run, which, lambda checkpoint: tokenizer_of(checkpoint, cfg))
    model = rebuild_model(cfg, tokenizer).to(device)
    read_from(run, which, lambda checkpoint: load_weights(checkpoint, model))
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
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        if any(one.get_dtype() not in WEIGHTS for one in slices.values()):
            raise ValueError("weights are real numbers")
        return {name: tuple(one.get_shape()) for name, one in slices.items()}


def _sync(folder: Path) -> None:
    """Wait until the files are on the disk, so that the rename can't overtake them."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
