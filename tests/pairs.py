"""Pairs of choices, built as shapes to see whether they go together."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError
from minllm.model.build import build_shapes
from tests.nodes import inside
from tests.tiny import VOCAB, completed, has_no_mask, has_no_word, is_listed, tiny_cfg

READ = ("model", "norm", "objective", "extensions", "choices", "typed")
"""What is read where a model is built as shapes."""
OF_A_LAYOUT = ("layout", "first", "loops", "n_layers")


@functools.cache
def alone(choice: str) -> DictConfig:
    """Return a choice's tiny configuration, with what it needs; a recurrent mixer stands beside an attention."""
    cfg = OmegaConf.to_container(tiny_cfg(*completed(choice)), resolve=True)
    cfg = {name: cfg[name] for name in READ}
    if choice.startswith("model/rec="):
        cfg["model"]["layout"] = ["rec mlp", "attn mlp"]
    return OmegaConf.create(cfg)


def together(one: DictConfig, choice: str, other: DictConfig) -> DictConfig:
    """Return the configuration `one` with what `choice`, whose configuration is `other`, brings."""
    group, cfg = choice.split("=")[0], copy.deepcopy(one)
    model, brought = cfg.model, other.model
    if group == "norm":
        put(cfg, ["norm"], other)
        return cfg
    if group == "model/layout":
        put(model, [*OF_A_LAYOUT, *(name for name in brought if name not in model)], brought)
    elif group == "model/encoder":
        # the layout that reads it comes with it
        put(model, ["encoder", *((*OF_A_LAYOUT, "cross") if "cross" in brought else ())], brought)
    elif group == "model/attn/mask":
        put(model.attn, ["mask"], brought.attn)
    else:
        put(model, [group.split("/")[1]], brought)
        if group == "model/rec" and "rec" not in " ".join(model.layout):
            # beside the cross-attention that an encoder needs
            beside = list(model.layout) if "cross" in " ".join(model.layout) else []
            model.layout = [*beside, *brought.layout]
            model.n_layers = max(model.n_layers, len(model.layout))
    if other.extensions:
        put(cfg, ["objective", "extensions"], other)
    return cfg


def put(node: DictConfig, names: Iterable[str], other: DictConfig) -> None:
    """Copy parts of another node, as they are: for the thousands of pairs OmegaConf's checks would take too long."""
    for name in names:
        node._content[name] = inside(node, other._get_node(name), {})


def needs_most(choice: str) -> tuple[int, bool]:
    """Sort choices by what they need, the most first; among equals an encoder, which brings its layout, is last."""
    return -len(completed(choice)), choice.startswith("model/encoder=")


def refusal(cfg: DictConfig) -> str | None:
    try:
        build_shapes(cfg, VOCAB)
    except UserError as error:
        return str(error)
    return None


@functools.cache
def is_refused(one: str, other: str) -> bool:
    """Whether a pair can't be built, found out by building it. Pairs of docs/options.md have a test of their own.

    So an option that was just put into conf/ needs no entry in any list: what it doesn't go with is discovered.
    """
    if is_listed(one) and is_listed(other):
        return False
    if has_no_mask(one, other) or has_no_word(one, other):
        return True
    # what needs other options comes first: the second is put into the first one's configuration
    one, other = sorted([one, other], key=needs_most)
    return refusal(together(alone(one), other, alone(other))) is not None
