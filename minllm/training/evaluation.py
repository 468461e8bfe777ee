"""Evaluation on the whole validation set."""

from __future__ import annotations

import math

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
    model: LM, objective: Objective, validation: Validation, device: torch.device, precision: Precision
) -> dict[str, float]:
    """Return `val_loss` (nats per token) and `val_bpb` (bits per UTF-8 byte), computed without dropout."""
    training = model.training
    model.eval()
    nats = torch.zeros((), dtype=torch.float64)
    try:
        for batch in validation:
            batch = batch.to(device)
            with autocast(device, precision):
                loss = objective.loss(model, batch.tokens_BT, batch.targets_BT, batch.segments_BT)
            nats += loss.double().cpu()
    finally:
        model.train(training)
    return {
        "val_loss": nats.item() / validation.tokens,
        "val_bpb": nats.item() / math.log(2) / validation.bytes,
    }
