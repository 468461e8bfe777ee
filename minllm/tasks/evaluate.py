"""`python run.py task=evaluate run=latest`: evaluate a trained model on a validation set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from minllm.data.batches import open_data
from minllm.data.floor import above_floor
from minllm.data.source import Source
from minllm.objective import Objective
from minllm.page import units
from minllm.schema.building import build
from minllm.schema.options import RunPlace, reads
from minllm.training import checkpoints, machine, memory
from minllm.training.answers import answers_of, refuse_hidden_answers
from minllm.training.evaluation import BOUND_NOTE, LOOKAHEAD_WARNING
from minllm.training.evaluation import evaluate as measure


@reads(
    "model", "norm", "objective", "tokenizer", "data", "train.device", "train.precision", "train.batch_size"
)
def evaluate(cfg: DictConfig, run_dir: Path, *, run: RunPlace) -> dict[str, Any]:
    """Print and return the losses of a run's best checkpoint on the validation set of `cfg.data`.

    Args:
        run: the run's folder, or `latest`.

    Returns:
        `val_loss` in nats per token, `val_bpb` in bits per byte, and `val_bound`: whether they are `exact` or `upper`
        bounds. If documents have answers, `val_accuracy` and `val_exact` with their 95 % intervals; see
        `minllm.training.answers`. If the corpus entropy is known, also `floor_bpb`,
        `bpb_above_floor`, and an error message in `below_floor` if the loss is below it.

    Raises:
        UserError: there is no such run, its checkpoint is damaged, or the data can't be read.
    """
    with memory.running_out("the model was evaluated"):
        return evaluated(cfg, run)


def evaluated(cfg: DictConfig, run: str) -> dict[str, Any]:
    settings = build(cfg.train)
    device = machine.choose_device(settings.device)
    precision, _ = machine.choose_precision(settings.precision, device)
    model, tokenizer = checkpoints.load_as(cfg, run, device=device)
    source: Source = build(cfg.data)
    objective: Objective = build(cfg.objective)
    objective.check(source)
    refuse_hidden_answers(source, objective)
    corpus = open_data(source, tokenizer)
    validation = corpus.validation(settings.batch_size)
    answers = answers_of(validation, objective, source)
    metrics = measure(model, objective, validation, device, precision, answers=answers)
    metrics |= above_floor(metrics["val_bpb"], corpus.floor_bits_per_byte, validation.bytes)
    for name in ("val_loss", "val_bpb", "floor_bpb", "bpb_above_floor"):
        if name in metrics:
            bound = objective.bound if name != "floor_bpb" else "exact"
            print(f"{name:16}{units.marked(f'{metrics[name]:.6f}', bound)}")
    if answers:
        metrics |= answers.summary()
        for name in answers.shares:
            low, high = metrics[f"{name}_interval"]
            print(f"{name:16}{metrics[name]:.6f}  [{low:.4f}, {high:.4f}]")
    metrics["val_bound"] = objective.bound
    print(f"{'val_bound':16}{objective.bound}")
    if objective.bound == "upper":
        print(BOUND_NOTE)
    if "below_floor" in metrics:
        print(metrics["below_floor"])
    if model.cannot_generate:
        print(LOOKAHEAD_WARNING)
    return metrics
