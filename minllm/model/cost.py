"""What a model costs: parameters, FLOPs and the bytes of its decoding state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minllm.model.contract import refuse_plain_parameters
from minllm.model.lm import LM, ModelState


@dataclass(frozen=True)
class Cost:
    """The costs by which architectures are compared without running them."""

    params: int
    params_non_embedding: int
    """Parameters without the embeddings and an untied head."""
    params_active: int
    """Parameters used by one token; fewer than `params` in a mixture of experts."""
    flops_per_token: float
    """FLOPs of training, forward and backward (3 × forward), for a sequence of the given length."""
    state_bytes_per_sequence: int | None
    """Size of the decoding state after a sequence of the given length, in fp32; None if the model can't generate."""


def cost(model: LM, seq_len: int) -> Cost:
    """Measure the cost of `model` at sequences of `seq_len` tokens, on the meta device."""
    return Cost(
        params=params(model),
        params_non_embedding=params_non_embedding(model),
        params_active=params_active(model),
        flops_per_token=flops_per_token(model, seq_len),
        state_bytes_per_sequence=state_bytes(model, 1, seq_len),
    )


def params(model: LM) -> int:
    return sum(p.numel() for p in model.parameters())


def params_non_embedding(model: LM) -> int:
    refuse_plain_parameters(model)
    outside = sum(p.numel() for p in model.parameters() if p.role.kind == "embedding")
    if model.head is not None:
        outside += model.head.weight.numel()
    return params(model) - outside


def params_active(model: LM) -> int:
    refuse_plain_parameters(model)
    return round(sum(p.numel() * p.role.active for p in model.parameters()))


def flops_per_token(model: LM, seq_len: int) -> float:
    """Return the FLOPs of training, forward and backward: 3 × forward."""
    return 3 * forward_flops(model, seq_len) / seq_len


def state_bytes(model: LM, batch: int, seq_len: int) -> int | None:
    """Return the size of the state of `batch` sequences in bytes; None if the model can't generate."""
    if model.cannot_generate:
        return None
    state = model.init_state(batch, seq_len, device="meta")
    if model.reads_memory:  # the memory's keys and values are cached in the first pass
        _on_meta(_TrainingPass(model), batch, seq_len, state)
    return state.nbytes


def forward_flops(model: LM, seq_len: int) -> int:
    """Count the floating-point operations of the matrix products in one forward pass over one sequence.

    torch's FlopCounterMode counts them as they are dispatched, so no option needs its own formula. Causal attention
    counts in full, as is customary.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _on_meta(_TrainingPass(model), 1, seq_len)
    return counter.get_total_flops()


class _TrainingPass(nn.Module):
    """The forward pass of a training step: the logits of the next token, and of those after it."""

    def __init__(self, model: LM):
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, state: ModelState | None = None) -> None:
        # assume that the memory is as long as the tokens; encoding it is part of the cost
        memory_BSD = self.model.example_memory(tokens_BT)
        ahead: list[Tensor] = []
        for x_BTD in [self.model.hidden(tokens_BT, None, state, memory_BSD=memory_BSD, ahead=ahead), *ahead]:
            self.model.logits(x_BTD)


def _on_meta(module: nn.Module, batch: int, seq_len: int, *args: ModelState | None) -> None:
    """Run a module on the meta device."""
    shapes = {name: t.to("meta") for name, t in [*module.named_parameters(), *module.named_buffers()]}
    tokens_BT = torch.zeros(batch, seq_len, dtype=torch.int64, device="meta")
    with torch.no_grad():
        torch.func.functional_call(module, shapes, (tokens_BT, *args))
