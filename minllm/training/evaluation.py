"""Evaluation on the whole validation set."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from minllm.data.batches import Validation
from minllm.model.lm import LM
from minllm.model.steps import evaluating
from minllm.objective import Objective
from minllm.objective.noise import Noise
from minllm.page import units
from minllm.training.answers import Answers
from minllm.training.machine import Precision
from minllm.training.parallel import ALONE, Processes

LOOKAHEAD_WARNING = (
    "This model looks ahead, so its loss isn't comparable with that of a causal model, and is lower."
)
BOUND_NOTE = f"{units.AT_MOST} marks an estimate of an upper bound: the true loss may be lower."


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context for a precision: bf16, or disabled for fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def evaluate(
    model: LM,
    objective: Objective,
    validation: Validation,
    device: torch.device,
    precision: Precision,
    nats_of_documents: np.ndarray | None = None,
    processes: Processes = ALONE,
    answers: Answers | None = None,
) -> dict[str, float]:
    """Return `val_loss` (nats per token) and `val_bpb` (bits per UTF-8 byte), computed without dropout.

    Args:
        nats_of_documents: if given, each document's loss is added to it.
        processes: those that share the batches.
        answers: if given, what is predicted right is counted too, and its shares are returned with the losses.
    """
    if answers:
        answers.begin()
    nats = torch.zeros(validation.rows, dtype=torch.float64)
    place = processes.place
    with evaluating(model):
        for rows, batch in validation.batches(place.rank, place.size):
            noise = Noise(0, "evaluation", rows, validation.rows)
            with autocast(device, precision):
                if answers:
                    right: list[Tensor] = []
                    nats_B = objective.nats(model, batch.to(device), noise, right)
                    answers.add(rows, batch, torch.cat(right).cpu())
                else:
                    nats_B = objective.nats(model, batch.to(device), noise)
            nats[rows.start : rows.stop] = nats_B.double().cpu()
    processes.add_up([nats])
    if nats_of_documents is not None:
        np.add.at(nats_of_documents, validation.documents_of_windows, nats.numpy())
    total = nats.sum().item()
    return {
        "val_loss": total / validation.tokens,
        "val_bpb": total / math.log(2) / validation.bytes,
        **(answers.end(processes) if answers else {}),
    }
