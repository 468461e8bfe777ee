"""Coordinate checks: how the activations of a model, and their changes in the first steps, grow with its size.

Where hyper-parameters transfer, neither depends on the width (2203.03466, appendix D.1), nor with CompleteP on the
depth.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from minllm.data.batches import Rows, TrainBatches
from minllm.model.build import new_model
from minllm.model.lm import LM
from minllm.model.steps import after_step, before_step, evaluating
from minllm.objective import Objective
from minllm.objective.noise import Noise
from minllm.schema.building import build
from minllm.tokenizer import Tokenizer
from minllm.training.transfer import set_lr

Activations = Mapping[str, Tensor]


@dataclass(frozen=True)
class Coordinates:
    """The root mean squares of one activation at one size: at initialisation, and of its change since then."""

    initial: float
    change: float


def coordinates(
    cfg: DictConfig, tokenizer: Tokenizer, batches: TrainBatches, steps: int
) -> dict[str, Coordinates]:
    """Train a new model for some steps at a constant learning rate; return what its first batch's activations did.

    Keys are "embedding", the branches' names (an encoder's as "encoder.attn"), "hidden" (the output of the last norm)
    and "logits". Dropout is off when activations are read.
    """
    model: LM = new_model(cfg, tokenizer)
    objective: Objective = build(cfg.objective)
    optimizer = build(cfg.optim, model)
    set_lr(optimizer, cfg.optim.lr)
    inputs = partial(_inputs, objective, batches, model, cfg.seed)
    before = _activations(model, objective, inputs(0))
    torch.manual_seed(cfg.seed)  # of dropout
    for step in range(steps):
        rows = inputs(step)
        optimizer.zero_grad()
        before_step(model)
        (objective.loss(model, rows) / objective.counted(batches.batch(step), rows)).backward()
        clip_grad_norm_(model.parameters(), math.inf if cfg.train.clip is None else cfg.train.clip)
        optimizer.step()
        after_step(model)
    after = _activations(model, objective, inputs(0))
    return {name: Coordinates(rms(x), rms(after[name] - x)) for name, x in before.items()}


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of log(value) against log(size), by least squares; NaN if a value isn't positive and finite."""
    if not all(math.isfinite(value) and value > 0 for value in values):
        return math.nan
    x, y = (torch.tensor(numbers, dtype=torch.float64).log() for numbers in (sizes, values))
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def _inputs(objective: Objective, batches: TrainBatches, model: LM, seed: int, step: int) -> Rows:
    rows = batches.batch_size
    return objective.inputs(batches.batch(step), Noise(seed, step, range(rows), rows), model)


@torch.no_grad()
def _activations(model: LM, objective: Objective, inputs: Rows) -> Activations:
    watched = _watched(model)
    found: dict[str, list[Tensor]] = {"embedding": [], **{name: [] for name, _ in watched}, "hidden": []}
    with evaluating(model), _watching(model, watched, found):
        before_step(model)
        objective.loss(model, inputs)
    found["logits"] = [model.logits(x) for x in found["hidden"]]
    found["hidden"] = [x / model.head_factor for x in found["hidden"]]
    return {name: torch.cat([x.flatten() for x in outputs]) for name, outputs in found.items() if outputs}


def _watched(model: LM) -> list[tuple[str, nn.Module]]:
    """Return the modules of all branches, with the names of their branches."""
    stacks = {"": model, **({"encoder.": model.encoder} if model.encoder is not None else {})}
    return [
        (prefix + word, module)
        for prefix, stack in stacks.items()
        for branch in stack.branches()
        for word, module in branch.words.items()
    ]


@contextlib.contextmanager
def _watching(
    model: LM, watched: list[tuple[str, nn.Module]], found: dict[str, list[Tensor]]
) -> Iterator[None]:
    """Append to `found` what the embedding, the watched modules and the last norm return, in the body."""

    def hook(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        found[name].append(output)

    handles = [module.register_forward_hook(partial(hook, name)) for name, module in watched]
    lookup, hidden = model.lookup, model.hidden
    model.lookup = lambda *args: _noted(found["embedding"], lookup(*args))
    model.hidden = lambda *args, **options: _noted(found["hidden"], hidden(*args, **options))
    try:
        yield
    finally:
        del model.lookup, model.hidden
        for handle in handles:
            handle.remove()


def _noted(outputs: list[Tensor], x: Tensor) -> Tensor:
    outputs.append(x)
    return x
