"""What goes with what: the README's table of refused pairs is what the code refuses, no more and no less."""

from __future__ import annotations

import itertools

import pytest
from omegaconf import OmegaConf

from minllm.config import compose
from minllm.errors import UserError
from minllm.model.build import build_shapes
from tests.tiny import VOCAB, completed, groups_of_model, has_no_word, options, refused_pairs, tiny_cfg

OF_A_LAYOUT = ("layout", "first", "loops", "n_layers")


def alone(choice: str) -> dict:
    """Return a choice's tiny configuration, with what it needs; a recurrent mixer stands beside an attention."""
    cfg = OmegaConf.to_container(tiny_cfg(*completed(choice)), resolve=True)
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
    elif group == "model/attn/mask":
        model["attn"] = {**model["attn"], "mask": other["model"]["attn"]["mask"]}
    else:
        model[group.split("/")[1]] = other["model"][group.split("/")[1]]
        if group == "model/rec" and "rec" not in " ".join(model["layout"]):
            model["layout"] = other["model"]["layout"]
    told = {name: other[name] for name in ("objective", "extensions")} if other["extensions"] else {}
    return cfg | told


def refusal(cfg: dict) -> str | None:
    try:
        build_shapes(OmegaConf.create(cfg), VOCAB)
    except UserError as error:
        return str(error)
    return None


def refuses() -> dict[frozenset[str], str]:
    """Return each pair of choices that can't be built, with the sentence."""
    choices = [choice for group in groups_of_model() for choice in options(group)]
    cfgs = {choice: alone(choice) for choice in choices}
    # what needs other options comes first: the second of a pair is put into the first one's configuration
    choices.sort(key=lambda choice: -len(completed(choice)))
    found = {}
    for one, other in itertools.combinations(choices, 2):
        if one.split("=")[0] == other.split("=")[0]:
            continue
        if {"model/attn=cross"} & {one, other} and "/mask=" in one + other:
            continue  # not a choice that this attention has
        if has_no_word(one, other):
            continue  # not one that this layout has
        if sentence := refusal(together(cfgs[one], other, cfgs[other])):
            found[frozenset([one, other])] = sentence
    for choice in choices:
        if sentence := refusal({**cfgs[choice], "objective": alone("model/attn=mha")["objective"]}):
            if "memory" in sentence:
                found[frozenset([choice, "objective=causal"])] = sentence
        elif sentence := build_shapes(tiny_cfg(*completed(choice)), VOCAB).cannot_generate:
            found[frozenset([choice, "task=generate"])] = sentence
    return found


@pytest.mark.slow  # a thousand pairs are built, as shapes
def test_the_readme_names_every_pair_that_is_refused():
    found = refuses()
    assert set(found) == refused_pairs, {
        tuple(sorted(pair)): found.get(pair, "isn't refused") for pair in set(found) ^ refused_pairs
    }
    assert all(sentence.endswith(".") and len(sentence) < 300 for sentence in found.values())


def test_a_choice_that_an_attention_does_not_have_is_refused():
    with pytest.raises(UserError, match="What you chose for model/attn has no mask"):
        compose(["model/attn=cross", "model/attn/mask=window"])


@pytest.mark.parametrize("layout", ["transformer", "parallel"])
def test_a_choice_that_a_layout_does_not_have_is_refused(layout):
    with pytest.raises(UserError, match="no sentence of model.layout says 'rec'"):
        build_shapes(compose([f"model/layout={layout}", "model/rec=gla"]), VOCAB)
