"""How hyper-parameters of an optimizer follow the growth of a parameter over the base shape (`model.transfer`).

For a width that grew by m, fan-in r, fan-out s and depth d (see `minllm.model.transfer`), the factors are

                        AdamW, Lion     SGD        Muon                       ε of Adam
    embedding, head     1               m          as AdamW                   1/m
    matrix              1/r             d s/r      √(s/r) / √(max side)       1/(m d)
    vector              1               d s        as AdamW                   1/(m d)

and that of the weight decay is the inverse of the learning rate's. A step's decay is lr · decay, and its time scale
should be that of the base shape (2405.13698; table 1 of CompleteP, 2505.01618, which also has the factors of ε).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import Parameter

Rule = Callable[[Parameter], float]
"""The factor of a parameter's learning rate."""


def of_signs(p: Parameter) -> float:
    """Updates whose size doesn't depend on the gradient's: Adam, Lion. Table 8 of 2203.03466."""
    return 1 / p.role.growth.fan_in


def of_gradients(p: Parameter) -> float:
    """Updates in proportion to the gradient, SGD (table 8 of 2203.03466); CompleteP divides those of branches by d."""
    growth = p.role.growth
    return growth.depth * growth.fan_out / growth.fan_in


def of_orthogonal(p: Parameter) -> float:
    """Muon's updates, an orthogonal matrix times √(longer side), whose norm should grow as √(s/r) (2310.17813)."""
    growth, (n_out, n_in) = p.role.growth, p.shape
    if p.role.inputs == 0:
        n_out, n_in = n_in, n_out
    n_out = max(p.role.parts or [n_out])
    before = max(n_out / growth.fan_out, n_in / growth.fan_in)
    return math.sqrt(growth.fan_out / growth.fan_in) / math.sqrt(max(n_out, n_in) / before)


def epsilon(p: Parameter) -> float:
    """Return the factor of Adam's ε, which follows the gradients. Table 1 of 2505.01618."""
    return 1 / (p.role.growth.width * p.role.growth.depth)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate, that of the base shape, of all groups of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
