"""The one place where a configuration becomes a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensor

from minllm.config import build, part, validate
from minllm.errors import UserError, first_line
from minllm.model.contract import outputs_checked, refuse_plain_parameters
from minllm.model.lm import LM
from minllm.model.parameter import initialise
from minllm.unused import refuse_unsaid, refuse_unused

if TYPE_CHECKING:
    from minllm.tokenizer import Tokenizer


def build_model(cfg: DictConfig, tokenizer: Tokenizer | None = None) -> LM:
    """Return the new model that `cfg` describes, with the initial weights of its seed, on the CPU in fp32.

    Args:
        cfg: a configuration, as `minllm.compose` returns it.
        tokenizer: the tokenizer, if it is at hand already; its vocabulary is the model's.

    Raises:
        UserError: an option doesn't exist, has a wrong value, two options don't go together, or one that was typed
            does nothing.
    """
    validate(cfg)
    tokenizer = tokenizer or build(cfg.tokenizer)
    build_shapes(cfg, tokenizer.vocab_size)  # refuses what doesn't go together before anything is allocated
    model = with_first_values(cfg, tokenizer)
    if has_values(model):
        refuse_unused(cfg)
    return model


def rebuild_model(cfg: DictConfig, tokenizer: Tokenizer) -> LM:
    """Return the model of a run that was made before, as `build_model` does.

    What was typed when the run began isn't judged again: it may do nothing beside what is typed now.
    """
    validate(cfg)
    shapes_of(cfg, tokenizer.vocab_size)
    return with_first_values(cfg, tokenizer)


def with_first_values(cfg: DictConfig, tokenizer: Tokenizer) -> LM:
    model = build(cfg.model, tokenizer.vocab_size, build(cfg.norm))
    refuse_plain_parameters(model)
    initialise(model, cfg.seed)
    if has_values(model):
        try_out(model)
    return model


def has_values(model: LM) -> bool:
    """Whether a model's parameters are numbers, and not the stand-ins that memory is predicted with."""
    return not any(isinstance(param, FakeTensor) for param in model.parameters())


@torch.no_grad()
def try_out(model: LM) -> None:
    """Show a model two tokens, together and one by one: whether its parts fit together is known at once.

    Raises:
        UserError: a part returns what it must not, or changes its input.
    """
    tokens_BT, memory_BSD = torch.zeros(1, 2, dtype=torch.int64), model.blank_memory(1, 2)
    with outputs_checked(model):
        model(tokens_BT, memory_BSD=memory_BSD)
        if not model.cannot_generate:
            state = model.init_state(1, 2)
            for token_B1 in tokens_BT.split(1, dim=1):
                model(token_B1, state=state, memory_BSD=memory_BSD)


def build_shapes(cfg: DictConfig, vocab_size: int) -> LM:
    """Return the model without any values, on the "meta" device: it takes no memory, and its shapes are there.

    Raises:
        UserError: two options don't go together, or something is chosen for a part that the model doesn't have.
    """
    model = shapes_of(cfg, vocab_size)
    refuse_unsaid(cfg, model)
    return model


def shapes_of(cfg: DictConfig, vocab_size: int) -> LM:
    """Return the same, whatever was chosen for parts that the model doesn't have."""
    try:
        with torch.device("meta"):
            model = build(cfg.model, vocab_size, build(cfg.norm))
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise UserError(
            f"This model is too large for any machine: {first_line(error)}. Make it smaller."
        ) from error
    objective = part(cfg.objective)
    if model.reads_memory and not getattr(objective.func, "gives_memory", False):
        raise UserError(
            "model.layout has cross-attention, which reads a memory beside the tokens, and this objective gives none:"
            " choose another objective, or another model/layout or model/attn."
        )
    learnt, made = objective.keywords.get("predict_ahead", 0), cfg.model.predict_ahead
    if learnt != made:
        raise UserError(
            f"model.predict_ahead={made} and objective.predict_ahead={learnt} must be the same: set the objective's,"
            " which the model's follows by itself."
        )
    return model.eval()
