"""What goes with what: the table of refused pairs in docs/options.md is what the code refuses, no more and no less."""

from __future__ import annotations

import copy
import itertools

import pytest
from omegaconf import DictConfig

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.model.build import build_shapes
from tests.pairs import alone, needs_most, put, refusal, together
from tests.tiny import (
    VOCAB,
    completed,
    groups_of_model,
    has_no_mask,
    has_no_word,
    is_listed,
    options,
    refused_pairs,
    tiny_cfg,
)


def refuses() -> dict[frozenset[str], str]:
    """Return each pair of choices that can't be built, with the sentence."""
    choices = [choice for group in groups_of_model() for choice in options(group) if is_listed(choice)]
    cfgs = {choice: shallow(choice) for choice in choices}
    by_itself = {choice: refusal(cfg) for choice, cfg in cfgs.items()}
    # what needs other options comes first: the second of a pair is put into the first one's configuration
    choices.sort(key=needs_most)
    found = {}
    for one, other in itertools.combinations(choices, 2):
        if one.split("=")[0] == other.split("=")[0]:
            continue
        if has_no_mask(one, other) or has_no_word(one, other):
            continue  # not a choice that this attention, or this layout, has
        if chooses(cfgs[one], other) or chooses(cfgs[other], one):
            sentence = by_itself[one if chooses(cfgs[one], other) else other]
        else:
            sentence = refusal(together(cfgs[one], other, cfgs[other]))
        if sentence:
            found[frozenset([one, other])] = sentence
    for choice in choices:
        untold = copy.deepcopy(cfgs[choice])
        put(untold, ["objective"], cfgs["model/attn=mha"])
        if sentence := refusal(untold):
            if "memory" in sentence:
                found[frozenset([choice, "objective=causal"])] = sentence
        elif sentence := build_shapes(tiny_cfg(*completed(choice)), VOCAB).cannot_generate:
            found[frozenset([choice, "task=generate"])] = sentence
    return found


def chooses(cfg: DictConfig, choice: str) -> bool:
    """Whether a configuration has a choice already, such as a group's default."""
    group, name = choice.split("=")
    return cfg.choices.get(group) == name


def shallow(choice: str) -> DictConfig:
    """Return a choice's configuration with each layer of its layout once: a thousand of them are built."""
    cfg = copy.deepcopy(alone(choice))
    cfg.model.n_layers = len(cfg.model.first) + len(cfg.model.layout)
    if "layout" in (cfg.model.get("encoder") or {}):
        cfg.model.encoder.n_layers = len(cfg.model.encoder.layout)
    return cfg


@pytest.mark.slow  # a thousand pairs are built, as shapes
def test_the_page_on_options_names_every_pair_that_is_refused():
    found = refuses()
    assert set(found) == refused_pairs, {
        tuple(sorted(pair)): found.get(pair, "isn't refused") for pair in set(found) ^ refused_pairs
    }
    assert all(sentence.endswith(".") and len(sentence) < 300 for sentence in found.values())


def test_a_choice_that_an_attention_does_not_have_is_refused():
    with pytest.raises(UserError, match="The chosen option of model/attn has no mask"):
        compose(["model/attn=cross", "model/attn/mask=window"])


@pytest.mark.parametrize("layout", ["transformer", "parallel"])
def test_a_choice_that_a_layout_does_not_have_is_refused(layout):
    with pytest.raises(UserError, match="no layer of model.layout has 'rec'"):
        build_shapes(compose([f"model/layout={layout}", "model/rec=gla"]), VOCAB)
