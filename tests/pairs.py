"""Pairs of choices, built as shapes to see whether they go together."""

from __future__ import annotations

import functools

from omegaconf import OmegaConf

from minllm.errors import UserError
from minllm.model.build import build_shapes
from tests.tiny import VOCAB, completed, has_no_mask, has_no_word, is_listed, tiny_cfg

READ = ("model", "norm", "objective", "extensions", "choices", "typed")
"""What is read where a model is built as shapes."""
OF_A_LAYOUT = ("layout", "first", "loops", "n_layers")


@functools.cache
def alone(choice: str) -> dict:
    """Return a choice's tiny configuration, with what it needs; a recurrent mixer stands beside an attention."""
    cfg = OmegaConf.to_container(tiny_cfg(*completed(choice)), resolve=True)
    cfg = {name: cfg[name] for name in READ}
    if choice.startswith("model/rec="):
        cfg["model"]["layout"] = ["rec mlp", "attn mlp"]
    return cfg


def together(one: dict, choice: str, other: dict) -> dict:
    """Return the configuration `one` with what `choice`, whose configuration is `other`, brings."""
    group, model = choice.split("=")[0], dict(one["model"])
    cfg = {**one, "model": model}
    if group == "norm":
        return {**cfg, "norm": other["norm"]}
    if group == "model/layout":
        model |= {name: other["model"][name] for name in OF_A_LAYOUT}
        model |= {name: node for name, node in other["model"].items() if name not in model}
    elif group == "model/encoder":
        # the layout that reads it comes with it
        of_layout = (*OF_A_LAYOUT, "cross") if "cross" in other["model"] else ()
        model |= {name: other["model"][name] for name in ("encoder", *of_layout)}
    elif group == "model/attn/mask":
        model["attn"] = {**model["attn"], "mask": other["model"]["attn"]["mask"]}
    else:
        model[group.split("/")[1]] = other["model"][group.split("/")[1]]
        if group == "model/rec" and "rec" not in " ".join(model["layout"]):
            # beside the cross-attention that an encoder needs
            beside = model["layout"] if "cross" in " ".join(model["layout"]) else []
            model["layout"] = [*beside, *other["model"]["layout"]]
            model["n_layers"] = max(model["n_layers"], len(model["layout"]))
    told = {name: other[name] for name in ("objective", "extensions")} if other["extensions"] else {}
    return cfg | told


def needs_most(choice: str) -> tuple[int, bool]:
    """Sort choices by what they need, the most first; among equals an encoder, which brings its layout, is last."""
    return -len(completed(choice)), choice.startswith("model/encoder=")


def refusal(cfg: dict) -> str | None:
    try:
        build_shapes(OmegaConf.create(cfg), VOCAB)
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
