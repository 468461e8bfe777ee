"""Building a model from a configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig, OmegaConf
from torch._subclasses.fake_tensor import FakeTensor

from minllm.errors import UserError, first_line
from minllm.model.branch import reads_one_way
from minllm.model.contract import outputs_checked, refuse_plain_parameters
from minllm.model.lm import LM
from minllm.model.parameter import initialise, normal
from minllm.model.transfer import scale
from minllm.model.unused import refuse_unsaid, refuse_unused
from minllm.schema.building import build
from minllm.schema.checking import validate

if TYPE_CHECKING:
    from minllm.objective import Objective
    from minllm.tokenizer import Tokenizer


def build_model(cfg: DictConfig, tokenizer: Tokenizer | None = None) -> LM:
    """Return the new model that `cfg` describes, with the initial weights of its seed, on the CPU in fp32.

    Args:
        cfg: a configuration, as `minllm.compose` returns it.
        tokenizer: the tokenizer, if already loaded; it determines the model's vocabulary size.

    Raises:
        UserError: an option doesn't exist or has an invalid value, two options can't be combined, or an override has
            no effect.
    """
    validate(cfg)
    return new_model(cfg, tokenizer or build(cfg.tokenizer))


def new_model(cfg: DictConfig, tokenizer: Tokenizer) -> LM:
    """Return what `build_model` does, for a configuration that has been validated."""
    build_shapes(cfg, tokenizer.vocab_size)  # rejects invalid combinations before anything is allocated
    model = with_first_values(cfg, tokenizer)
    if has_values(model):
        refuse_unused(cfg)
    return model


def rebuild_model(cfg: DictConfig, tokenizer: Tokenizer) -> LM:
    """Return the model of an existing run, for a configuration that has been validated.

    The run's overrides aren't checked again, because new overrides may have made them ineffective.
    """
    shapes_of(cfg, tokenizer.vocab_size)
    return with_first_values(cfg, tokenizer)


def with_first_values(cfg: DictConfig, tokenizer: Tokenizer) -> LM:
    model = with_parts(cfg, build(cfg.objective), tokenizer.vocab_size)
    refuse_plain_parameters(model)
    initialise(model, cfg.seed)
    if has_values(model):
        try_out(model)
    return model


def with_parts(cfg: DictConfig, objective: Objective, vocab_size: int) -> LM:
    """Return the model with the tokens and the parameters that its objective adds; they aren't initialised."""
    model = build(cfg.model, vocab_size + objective.extra_tokens, build(cfg.norm))
    model.parts = objective.parts(model.dim, model.vocab_size)
    if model.parts is not None:
        model.parts.stands_as = "objective"
    if objective.embedding_std is not None:
        model.embedding.role = replace(model.embedding.role, draw=normal(objective.embedding_std))
    if model.transfer != "none":
        if model.base is None:
            raise UserError(
                f"model.transfer={model.transfer} needs a base shape, but model.base is null: remove model.base=null."
            )
        layers = cfg.model.n_layers / model.base.n_layers
        scale(model, base_of(cfg, model, objective), model.transfer, layers)
    return model


def base_of(cfg: DictConfig, model: LM, objective: Objective) -> LM:
    """Return the model at the base width, with hidden widths in proportion, on the "meta" device."""
    from minllm.model.solve import configured, wider

    base = cfg.copy()
    OmegaConf.set_readonly(base, False)
    settings = wider(configured(cfg), model.base.dim)
    if model.base.n_heads is not None:
        settings = {**settings, **head_counts(cfg.model, model.base.n_heads)}
    for key, value in {**settings, "model.transfer": "none"}.items():
        OmegaConf.update(base, key, value)
    try:
        with torch.device("meta"):
            return with_parts(base, objective, model.vocab_size - objective.extra_tokens)
    except UserError as error:
        raise UserError(
            f"The base shape of model.transfer={model.transfer}, model.base.dim={model.base.dim}, isn't possible:"
            f" {error}"
        ) from error


def head_counts(node: DictConfig, n_heads: int, path: str = "model") -> dict[str, int]:
    """Return the options of all mixers that count heads, for a number of heads, with the others in proportion."""
    found: dict[str, int] = {}
    own = node.get("n_heads")
    for name in node:
        if OmegaConf.is_dict(node[name]) and name != "base":
            found |= head_counts(node[name], n_heads, f"{path}.{name}")
        elif isinstance(own, int) and name in ("n_heads", "n_kv_heads", "n_value_heads") and node[name]:
            found[f"{path}.{name}"] = max(1, round(node[name] * n_heads / own))
    return found


def has_values(model: LM) -> bool:
    """Whether a model's parameters are real tensors, not the fake ones used to predict memory."""
    return not any(isinstance(param, FakeTensor) for param in model.parameters())


@torch.no_grad()
def try_out(model: LM) -> None:
    """Run a model on two tokens, together and one by one, to check that its parts fit together.

    Raises:
        UserError: a part returns an invalid output, or changes its input.
    """
    tokens_BT = torch.zeros(1, 2, dtype=torch.int64)
    with outputs_checked(model):
        memory_BSD = model.example_memory(tokens_BT)
        model(tokens_BT, memory_BSD=memory_BSD)
        if not model.cannot_generate:
            state = model.init_state(1, 2)
            for token_B1 in tokens_BT.split(1, dim=1):
                model(token_B1, state=state, memory_BSD=memory_BSD)


def build_shapes(cfg: DictConfig, vocab_size: int) -> LM:
    """Return the model on the "meta" device: it has shapes but no values, and takes no memory.

    Raises:
        UserError: two options can't be combined, or an override is for a part that the model doesn't have.
    """
    model = shapes_of(cfg, vocab_size)
    refuse_unsaid(cfg, model)
    return model


def shapes_of(cfg: DictConfig, vocab_size: int) -> LM:
    """Return the same as `build_shapes`, without checking for overrides that have no effect."""
    objective = build(cfg.objective)
    try:
        with torch.device("meta"):
            model = with_parts(cfg, objective, vocab_size)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise UserError(
            f"This model is too large for any machine: {first_line(error)}. Make it smaller."
        ) from error
    if model.reads_memory and not objective.gives_memory:
        raise UserError(
            "model.layout has cross-attention, which reads a memory, but this objective supplies none: choose"
            " objective=seq2seq or span with model/encoder=same, or another model/layout or model/attn."
        )
    objective.check_model(model)
    refuse_wrong_direction(cfg, model, objective.attends)
    learnt, made = getattr(objective, "predict_ahead", 0), cfg.model.predict_ahead
    if learnt != made:
        raise UserError(
            f"model.predict_ahead={made} and objective.predict_ahead={learnt} must be the same: set only"
            " objective.predict_ahead, which model.predict_ahead follows."
        )
    return model.eval()


def refuse_wrong_direction(cfg: DictConfig, model: LM, attends: str) -> None:
    """Reject mixers that read from left to right only, for an objective whose tokens see later ones."""
    one_way = [
        f"model.{word} ({type(module).__name__})"
        for branch in model.branches()
        for word, module in branch.words.items()
        if reads_one_way(module)
    ]
    if model.both_ways and not (one_way and attends == "all"):
        raise UserError(
            "model.both_ways=true would do nothing: it is for recurrent mixers, and for objectives whose tokens see the"
            " whole text, such as objective=masked. Remove it."
        )
    if one_way and attends != "past" and not model.both_ways:
        both = "type model.both_ways=true, or " if attends == "all" else ""
        raise UserError(
            f"objective={cfg.choices.objective} lets tokens see later ones, but {one_way[0]} reads from left to right"
            f" only: {both}choose attention in its place, such as model/layout=transformer."
        )
