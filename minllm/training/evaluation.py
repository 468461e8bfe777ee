"""How good a model is on the whole validation set."""

from __future__ import annotations

import math

import torch

from minllm.data.batches import Validation
from minllm.model.lm import LM
from minllm.objective.causal import Causal
from minllm.training.machine import Precision

LOOKAHEAD_WARNING = (
    "This model looks ahead: its loss is lower than that of one which sees only what came before."
)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a model is run: bf16 matrix products, or nothing special."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def evaluate(
    model: LM, objective: Causal, validation: Validation, device: torch.device, precision: Precision
) -> dict[str, float]:
    """Return `val_loss` (nats a token) and `val_bpb` (bits a UTF-8 byte), without dropout."""
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
