"""Optimizers: `optim(model, *, lr, ...)`, with parameters grouped by the roles that the model gave them."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from minllm.options import BelowOne, NonNegative, Positive

_Torch = torch.optim.AdamW


class AdamW(_Torch):
    """torch's fused AdamW. Matrices decay, embeddings if `decay_embeddings` says so, vectors never.

    torch wraps an optimizer's methods so that `torch.compile` steps around them, and to do so each wrapper imports
    the compiler: two seconds before the first step. An optimizer that is never compiled needs no such wrapper, so
    these are the same methods without it.
    """

    add_param_group = inspect.unwrap(_Torch.add_param_group)
    zero_grad = inspect.unwrap(_Torch.zero_grad)
    state_dict = inspect.unwrap(_Torch.state_dict)
    load_state_dict = inspect.unwrap(_Torch.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(_Torch.step))

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: Positive,
        weight_decay: NonNegative,
        beta1: BelowOne,
        beta2: BelowOne,
        eps: Positive,
        decay_embeddings: bool,
    ):
        decayed = {"matrix", "embedding"} if decay_embeddings else {"matrix"}
        groups = [
            {
                "params": [p for p in model.parameters() if p.role.kind in decayed],
                "weight_decay": weight_decay,
            },
            {"params": [p for p in model.parameters() if p.role.kind not in decayed], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        # torch has fused kernels for the devices that matter here; elsewhere it chooses for itself
        fused = True if next(model.parameters()).device.type in ("cpu", "cuda", "mps") else None
        super().__init__(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=fused)
