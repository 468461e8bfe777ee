"""Every objective meets every mixer and layout: together they learn and keep the laws, or are refused in a sentence.

All YAMLs are discovered. A pair is put together from two configurations, because composing each takes too long.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError
from minllm.laws.laws import check_specimen
from minllm.laws.specimen import randomise, specimen
from minllm.model.branch import reads_one_way
from minllm.model.build import build_shapes, try_out, with_parts
from minllm.model.lm import LM
from minllm.objective import Inputs, Objective
from minllm.objective.noise import Noise
from minllm.objective.targets import read
from minllm.schema.building import build
from tests.objectives import batch, noise
from tests.pairs import alone, put
from tests.tiny import VOCAB, T, options, tiny_cfg

GROUPS = ("model/attn", "model/attn/mask", "model/rec", "model/layout")
CHEAP = {"draws": 1, "steps": 6, "width": 8, "block": 6}
"""What costs time in an evaluation, and what must be smaller than a tiny row."""
ROUNDING = 1e-4
"""Relative differences below this are rounding."""


@pytest.mark.parametrize("choice", [choice for group in GROUPS for choice in options(group)])
@pytest.mark.parametrize("objective", options("objective"), scope="module")
def test_they_go_together_or_are_refused(objective, choice):
    learn, cfg = made(objective), put_together(objective, choice)
    one_way, reads_memory = mixers_of(choice)
    if reads_memory and not learn.gives_memory:
        assert refused(cfg).startswith("model.layout has cross-attention, which reads a memory")
        return
    if choice == "model/attn=cross":
        assert "+model/attn@model.encoder.attn=mha" in refused(cfg)
        put(cfg.model.encoder, ["attn"], alone("model/attn=mha").model)
    if one_way and learn.attends != "past":
        sentence = refused(cfg)
        assert "reads from left to right only" in sentence
        assert ("type model.both_ways=true" in sentence) == (learn.attends == "all")
        cfg.model.both_ways = True
        if learn.attends != "all":
            assert "model.both_ways=true would do nothing" in refused(cfg)
            return
    # an objective changes the models of these laws by its encoder alone; tests/test_every_option.py has the others
    if objective == first_with_memory():
        check_specimen(specimen(cfg), T, learn)
    model = random_model(cfg)
    check_evaluation(learn, model)
    check_sight(learn, model)
    check_learning(learn, model)


# ---- the laws ------------------------------------------------------------------------------------


def check_learning(learn: Objective, model: LM) -> None:
    """The loss is finite, a gradient reaches every parameter, and a step lowers the loss of the same inputs."""
    model.train()
    inputs = learn.inputs(batch(given=True), noise(), model)
    before = learn.loss(model, inputs)
    before.backward()
    assert before.isfinite()
    for path, param in model.named_parameters():
        assert param.grad is not None and param.grad.isfinite().all(), path
        assert param.grad.any() or param.role.active < 1, path  # no token may have chosen an expert
    with torch.no_grad():
        for param in model.parameters():
            param -= 1e-4 * param.grad.sign()  # the first step of Adam
    assert learn.loss(model, inputs) < before


@torch.no_grad()
def check_evaluation(learn: Objective, model: LM) -> None:
    """A row's nats are finite, and the same in a smaller batch."""
    documents, rows = batch(given=True), range(1, 3)
    whole_B = learn.nats(model.eval(), documents, noise(step="evaluation"))
    some_B = learn.nats(model, documents.rows(slice(1, 3)), Noise(0, "evaluation", rows, 4))
    assert whole_B.isfinite().all() and (whole_B > 0).all()
    torch.testing.assert_close(some_B, whole_B[1:3], rtol=ROUNDING, atol=0)


@torch.no_grad()
def check_sight(learn: Objective, model: LM) -> None:
    """A token changes its own output and none that may not see it; ahead of it some do where that is allowed."""
    documents = batch(1, given=True)
    inputs = learn.inputs(documents, noise(1), model.eval())
    inputs = next(own for own in getattr(inputs, "own", [inputs]) if own is not None)
    if not isinstance(inputs, Inputs):
        inputs = Inputs(documents.tokens_BT, documents.targets_BT, sees_all=True)
    S = inputs.tokens_BS.shape[1]
    places = range(0, S, 5)
    changes_PS = differs(model, inputs, "tokens_BS", places)
    may_PS = visible(learn, inputs, documents.given_BT)[:, places].T
    assert not (changes_PS & ~may_PS).any()
    assert all(changes_PS[row, place] for row, place in enumerate(places))
    ahead_PS = torch.arange(S) < torch.tensor(places)[:, None]
    assert (changes_PS & ahead_PS).any() == (may_PS & ahead_PS).any()
    if inputs.source_BS is not None:
        assert differs(model, inputs, "source_BS", [0])[0, 0]


def differs(model: LM, inputs: Inputs, name: str, places: Sequence[int]) -> torch.Tensor:
    """Return the outputs that differ when a token is changed, bool (places, outputs)."""
    rows = [inputs] + [changed(inputs, name, place) for place in places]
    whole = Inputs(
        **{
            field: torch.cat([getattr(row, field) for row in rows])
            if isinstance(value, torch.Tensor)
            else value
            for field, value in vars(inputs).items()
        }
    )
    x_RSD = read(model, whole)
    return (x_RSD[1:] - x_RSD[:1]).abs().amax(2) > ROUNDING * x_RSD.abs().max()


def changed(inputs: Inputs, name: str, place: int) -> Inputs:
    tokens_1S = getattr(inputs, name).clone()
    tokens_1S[0, place] = (tokens_1S[0, place] + 1) % VOCAB
    return replace(inputs, **{name: tokens_1S})


def visible(learn: Objective, inputs: Inputs, given_BT: torch.Tensor) -> torch.Tensor:
    """Return which inputs an output may depend on, bool (outputs, inputs)."""
    S = inputs.tokens_BS.shape[1]
    place_S = torch.arange(S)
    past = place_S[None] <= place_S[:, None]
    if learn.attends == "all":
        return torch.ones(S, S, dtype=torch.bool)
    if learn.attends == "given":
        known_S = place_S <= given_BT.sum()  # inputs are one token behind
        return past | (known_S[:, None] & known_S[None])
    if learn.attends == "blocks":
        block_S, clean_S = (
            place_S % T // learn.block,
            place_S >= T,
        )  # the noised row, and the same without noise
        earlier, same = block_S[None] < block_S[:, None], block_S[None] == block_S[:, None]
        return (earlier & clean_S[None]) | (same & (clean_S[:, None] == clean_S[None]))
    return past


@functools.cache
def first_with_memory() -> str:
    return next(name for name in options("objective") if made(name).gives_memory)


# ---- how a pair is made --------------------------------------------------------------------------


def put_together(objective: str, choice: str) -> DictConfig:
    """Return a configuration with both; if the objective gives a memory, each layer of the decoder reads it.

    The layout isn't repeated: what two layers of a kind do together is proved for each mixer and for each objective in
    files of their own.
    """
    cfg = copy.deepcopy(alone(choice))
    put(cfg, ["objective"], objective_node(objective))
    cfg.extensions, cfg.choices.objective = [], objective.split("=")[1]
    model, of_encoder = cfg.model, alone("model/encoder=same").model
    if made(objective).gives_memory:
        put(model, ["encoder"], of_encoder)
        if choice != "model/attn=cross":
            put(model, ["cross"], of_encoder)
            model.layout = [layer if "cross" in layer else f"{layer} cross" for layer in model.layout]
        model.encoder.n_layers = 1
    model.n_layers = len(model.first) + len(model.layout)
    return cfg


@functools.cache
def made(objective: str) -> Objective:
    return build(objective_node(objective).objective)


@functools.cache
def objective_node(objective: str) -> DictConfig:
    """Return an objective's configuration, and nothing besides."""
    node = OmegaConf.to_container(tiny_cfg(objective).objective, resolve=True)
    cheap = {name: value for name, value in CHEAP.items() if name in node}
    return OmegaConf.create({"objective": node | cheap})


def random_model(cfg: DictConfig) -> LM:
    build_shapes(cfg, VOCAB)
    model = with_parts(cfg, build(cfg.objective), VOCAB)
    randomise(model, 0, strength=1.0)
    try_out(model)
    return model


@functools.cache
def mixers_of(choice: str) -> tuple[bool, bool]:
    """Return whether some mixer reads from left to right only, and whether some mixer reads a memory."""
    cfg = alone(choice)
    with torch.device("meta"):
        model = with_parts(cfg, build(cfg.objective), VOCAB)
    modules = [module for branch in model.branches() for module in branch.words.values()]
    return any(map(reads_one_way, modules)), model.reads_memory


def refused(cfg: DictConfig) -> str:
    """Return the sentence with which a configuration is refused."""
    with pytest.raises(UserError) as raised:
        build_shapes(cfg, VOCAB)
    sentence = str(raised.value)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 300
    return sentence
