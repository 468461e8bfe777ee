"""Checkpoints: safetensors, an optimizer state of tensors and numbers only, and JSON.

    checkpoints/step-000100/
        model.safetensors       the weights; with train.ema, their average
        unaveraged.safetensors  with train.ema, the weights that training continues from
        optimizer.pt            loaded with weights_only=True: no arbitrary objects are unpickled
        state.json              progress, best evaluation, choices made by `auto`, and checksums (state.py)

A checkpoint is written to a temporary folder and then renamed, so a folder named step-* is always complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.files.atomic import checksum, write_text
from minllm.model.build import rebuild_model
from minllm.model.lm import LM
from minllm.runs import find as runs
from minllm.runs.folder import to_json
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.tokenizer import Tokenizer, of_run
from minllm.training import memory
from minllm.training.averaging import Average, averaged
from minllm.training.optimizers import wrong_state
from minllm.training.parallel import shard_of
from minllm.training.state import Progress, wrong_values

if TYPE_CHECKING:
    from minllm.training.gathering import Contents

T = TypeVar("T")
PATIENCE = 100
"""How many times to retry when the training process removes the checkpoint being read."""
MODEL, UNAVERAGED, OPTIMIZER = "model.safetensors", "unaveraged.safetensors", "optimizer.pt"
WEIGHTS = ("F64", "F32", "F16", "BF16")


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    keep: int,
    average: Average | None = None,
    contents: Contents | None = None,
    branches: Collection[int] = (),
) -> None:
    """Write a checkpoint in `folder`, then remove all except the newest `keep`, the best, and those of `branches`.

    Args:
        average: the average of the model's parameters, if there is one.
        contents: what `gathering.gather` returned, if parameters are sharded.

    Raises:
        OSError: the folder can't be written, or the disk is full; earlier checkpoints are unchanged.
    """
    target = folder / f"step-{progress.step:06d}"
    beside = folder / f".{target.name}.partial"
    remove_partial(folder)
    beside.mkdir(parents=True)
    try:
        with _write_errors():
            if contents:
                for name, weights in contents.weights.items():
                    save_file(weights, str(beside / name))
            else:
                if average:
                    save_model(model, str(beside / UNAVERAGED))
                with averaged(average):
                    save_model(model, str(beside / MODEL))
            with (beside / OPTIMIZER).open("wb") as file:
                torch.save(contents.optimizer if contents else optimizer.state_dict(), file)
        progress.files = {path.name: checksum(path) for path in sorted(beside.iterdir())}
        (beside / "state.json").write_text(to_json(asdict(progress)), encoding="utf-8")
        _sync(beside)
        os.replace(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    tidy(
        folder, progress, keep, branches
    )  # after the rename: `progress.best` may be the checkpoint just written


def tidy(folder: Path, progress: Progress, keep: int, branches: Collection[int] = ()) -> None:
    """Remove all checkpoints except the newest `keep`, the best and those of `branches`.

    Partial folders left by a killed run are removed, too.
    """
    kept = {progress.best["step"] if progress.best else None, *branches}
    for old in all_in(folder)[:-keep]:
        if step_of(old) not in kept:
            old.rename(folder / f".{old.name}.partial")
    remove_partial(folder)


def remove_partial(folder: Path) -> None:
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial)


def save_progress(folder: Path, progress: Progress) -> None:
    """Rewrite state.json with what was measured after the checkpoint of this step was saved."""
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
        which: `best` has the lowest validation loss; the last checkpoint if none has been evaluated.

    Raises:
        UserError: there is no such run, or it has no checkpoint.
    """
    folder = runs.find_run(run) / "checkpoints"
    found = all_in(folder)
    if not found:
        raise UserError(f"'{folder.parent}' has no checkpoint: it stopped before writing the first one.")
    if which == "best":
        best = read_progress(found[-1]).best
        return next((path for path in found if best and step_of(path) == best["step"]), found[-1])
    return found[-1]


def read_from(run: str | Path, which: Literal["last", "best"], read: Callable[[Path], T]) -> T:
    """Return what `read` returns for a checkpoint. If training removes it meanwhile, retry with the next one.

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
    """Return a checkpoint's progress. UserError if the checkpoint is damaged."""
    with _damage(checkpoint, "state.json") as path:
        progress = Progress(**json.loads(path.read_text(encoding="utf-8")))
        if wrong := wrong_values(progress, step_of(checkpoint)):
            raise UserError(f"{path} is damaged: {wrong[0]} has an impossible value. {cure(checkpoint)}")
        return progress


def load_weights(checkpoint: Path, model: nn.Module, name: str = MODEL) -> None:
    """Load a checkpoint's weights into `model`.

    Args:
        name: the file that has them.

    Raises:
        UserError: the checkpoint is damaged, or belongs to a different architecture.
    """
    with _damage(checkpoint, name) as path:
        refuse_changed(path)
        shapes = _shapes(path)  # raises ValueError for types that weights can't have
    for key, tensor in model.state_dict().items():
        if key in shapes and shapes[key] != tuple(tensor.shape):
            raise UserError(
                f"{path} belongs to a different architecture: its {key} has shape {shapes[key]}, but this model's has"
                f" {tuple(tensor.shape)}. Use the options in {run_of(checkpoint)}/config.yaml."
            )
    with _damage(checkpoint, name):
        device = str(next(model.parameters()).device)
        missing, unexpected = load_model(model, path, strict=False, device=device)
    if missing or unexpected:
        differences = [f"{key} is missing" for key in missing] + [
            f"{key} is not in this model" for key in unexpected
        ]
        raise UserError(
            f"{path} belongs to a different architecture ({', '.join(differences[:3])}). Use the options it was trained"
            f" with, from {run_of(checkpoint)}/config.yaml."
        )


def load_average(checkpoint: Path, model: nn.Module, average: Average) -> None:
    """Load a checkpoint's averaged parameters into `average`, and its unaveraged weights into `model`.

    Raises:
        UserError: the checkpoint is damaged, or belongs to a different architecture.
    """
    load_weights(checkpoint, model)
    average.restart()
    load_weights(checkpoint, model, UNAVERAGED)


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's state into `optimizer`. UserError if the checkpoint is damaged."""
    with _damage(checkpoint, OPTIMIZER) as path:
        refuse_changed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if wrong := wrong_state(optimizer, state):
            raise UserError(f"{path} is damaged: {wrong}. {cure(checkpoint)}")
        optimizer.load_state_dict(state)
        shard_state(optimizer)


def shard_state(optimizer: torch.optim.Optimizer) -> None:
    """Shard a state that was loaded whole like the parameters that it belongs to, if they are sharded."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                state[name] = shard_of(value, p)


def refuse_changed(path: Path) -> None:
    """Raise UserError if a checkpoint's file has changed since it was saved."""
    known = read_progress(path.parent).files
    if known is not None and checksum(path) != known.get(path.name):
        raise UserError(
            f"{path} is damaged: its checksum doesn't match {path.parent / 'state.json'}. {cure(path.parent)}"
        )


def load(
    run: str | Path,
    *,
    which: Literal["best", "last"] = "best",
    device: torch.device | str = "cpu",
    extensions: Sequence[str] = (),
) -> tuple[LM, Tokenizer, DictConfig]:
    """Return a run's model, tokenizer and configuration.

    Args:
        run: the run's folder, or `latest`.
        which: the checkpoint with the lowest validation loss, or the last one.
        device: the device of the model's parameters.
        extensions: packages besides minllm from which the run's configuration may load code; name only what you trust.

    Returns:
        (model, tokenizer, cfg); the model is in evaluation mode.

    Raises:
        UserError: there is no such run, it has no checkpoint, or the checkpoint is damaged.
    """
    cfg = runs.read_run(run, extensions)
    validate(cfg)
    return *load_as(cfg, run, which, device), cfg


def load_as(
    cfg: DictConfig,
    run: str | Path,
    which: Literal["best", "last"] = "best",
    device: torch.device | str = "cpu",
) -> tuple[LM, Tokenizer]:
    """Return a run's model and tokenizer with the options of `cfg`, which may differ from the run's own."""
    tokenizer = read_from(run, which, lambda checkpoint: tokenizer_of(checkpoint, cfg))
    model = rebuild_model(cfg, tokenizer).to(device)
    read_from(run, which, lambda checkpoint: load_weights(checkpoint, model))
    return model.eval(), tokenizer


def tokenizer_of(checkpoint: Path, cfg: DictConfig) -> Tokenizer:
    """Return the tokenizer that a checkpoint was trained with; `cfg` must not name a different one.

    Raises:
        UserError: `cfg` has a different tokenizer, or the run's own copy has changed.
    """
    run = run_of(checkpoint)
    saved = runs.read_run(run, cfg.extensions)
    kept = of_run(run, saved)
    before = read_progress(checkpoint).tokenizer
    if before not in (None, kept.fingerprint):
        raise UserError(
            f"The tokenizer in {run / 'tokenizer'} ({kept.fingerprint[:8]}) isn't the one that {checkpoint.name} was"
            f" trained with ({before[:8]}). Restore the original files: the model can't read other tokens."
        )
    # the overrides may give the same tokenizer under another name
    asked = kept if unresolved(cfg.tokenizer) == unresolved(saved.tokenizer) else build(cfg.tokenizer)
    if asked.fingerprint != kept.fingerprint:
        raise UserError(
            f"The model of {run} was trained with tokenizer={saved.choices.get('tokenizer')} ({kept.fingerprint[:8]})"
            f" and can't read tokens of tokenizer={cfg.choices.get('tokenizer')} ({asked.fingerprint[:8]}). Leave out"
            " the tokenizer override: a run keeps its own tokenizer."
        )
    return kept


def unresolved(node: DictConfig) -> Any:
    """Return a node with its interpolations unresolved: what they refer to, such as a data path, may have moved."""
    return OmegaConf.to_container(node, resolve=False)


@contextmanager
def _damage(checkpoint: Path, name: str) -> Iterator[Path]:
    """Turn any failure to read a checkpoint's file into a UserError that names the file and the remedy."""
    path = checkpoint / name
    try:
        yield path
    except UserError:
        raise
    # parsers fail on damaged files in many ways, and none of them is a bug in minllm
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
    """Return the remedy for a damaged checkpoint."""
    earlier = [path for path in all_in(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
    if earlier:
        return f"Remove the folder {checkpoint} to use step {step_of(earlier[-1])} instead."
    return "The run has no earlier checkpoint, so train it again."


@contextmanager
def _write_errors() -> Iterator[None]:
    """Raise the underlying OSError of a failed write, which safetensors and torch wrap in their own exceptions."""
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
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if any(weight.get_dtype() not in WEIGHTS for weight in slices.values()):
            raise ValueError("weights must be floating-point numbers")
        return {name: tuple(weight.get_shape()) for name, weight in slices.items()}


def _sync(folder: Path) -> None:
    """Flush the files to disk, so that the rename can't get there before them."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
