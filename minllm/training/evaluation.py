"""Evaluation on the whole validation set."""

from __future__ import annotations

import inspect
import math

import numpy as np
import torch

from minllm.data.batches import Validation
from minllm.model.lm import LM
from minllm.objective import Objective
from minllm.training.machine import Precision

LOOKAHEAD_WARNING = (
    "This model looks ahead, so its loss isn't comparable with that of a causal model, and is lower."
)


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
) -> dict[str, float]:
    """Return `val_loss` (nats per token) and `val_bpb` (bits per UTF-8 byte), computed without dropout.

    Args:
        nats_of_documents: if given, each document's loss is added to it; the objective must support that
            (`knows_rows`).
    """
    training = model.training
    model.eval()
    nats = torch.zeros((), dtype=torch.float64)
    by_window: list[np.ndarray] = []
    try:
        for batch in validation:
            batch = batch.to(device)
            with autocast(device, precision):
                if nats_of_documents is None:
                    loss = objective.loss(model, batch.tokens_BT, batch.targets_BT, batch.segments_BT)
                else:
                    rows_B = torch.zeros(len(batch.tokens_BT), device=device)
                    loss = objective.loss(
                        model, batch.tokens_BT, batch.targets_BT, batch.segments_BT, rows_B=rows_B
                    )
                    by_window.append(rows_B.cpu().numpy())
            nats += loss.double().cpu()
    finally:
        model.train(training)
    if nats_of_documents is not None:
        np.add.at(nats_of_documents, validation.documents_of_windows, np.concatenate(by_window))
    return {
        "val_loss": nats.item() / validation.tokens,
        "val_bpb": nats.item() / math.log(2) / validation.bytes,
    }


def knows_rows(objective: Objective) -> bool:
    """Whether an objective can tell the loss of each row, from which the loss of each document is summed."""
    return "rows_B" in inspect.signature(objective.loss).parameters
