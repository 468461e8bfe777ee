"""What is special about a mixture of objectives; test_objectives.py has what holds for every objective."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import minllm
from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.objective.noise import Noise
from minllm.schema.building import build
from tests.objectives import ENCODER, NEEDS, Letters, batch, mixture, model_for, noise, part, sampling
from tests.tiny import VOCAB, T, options, random_model

ALONE = [name for name in options("objective") if name not in ("objective=diffuseq", "objective=mixture")]
"""The objectives that a mixture may have."""


def gradients(model, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [param.grad.clone() for param in model.parameters() if param.grad is not None]


# ---- which rows ----------------------------------------------------------------------------------


def test_weights_are_shares_of_the_rows():
    for step in range(20):
        assert Counter(Noise(0, step, range(8), 8).divided([2, 1, 1])) == {0: 4, 1: 2, 2: 2}
        uneven = Counter(Noise(0, step, range(8), 8).divided([1, 1, 1]))
        assert sorted(uneven.values()) == [2, 3, 3]


def test_each_row_has_each_part_with_its_probability():
    steps = 2000
    drawn = [Noise(0, step, range(3), 3).divided([0.7, 0.1, 0.2]) for step in range(steps)]
    for row in range(3):
        counts = Counter(parts[row] for parts in drawn)
        for number, probability in enumerate([0.7, 0.1, 0.2]):
            assert counts[number] / steps == pytest.approx(probability, abs=4 * 0.5 / steps**0.5)


def test_the_assignment_depends_on_seed_step_and_row_alone():
    whole = Noise(3, 7, range(8), 8).divided([1, 2])
    assert Noise(3, 7, range(2, 5), 8).divided([1, 2]) == whole
    others = {
        tuple(Noise(seed, step, range(8), 8).divided([1, 2]))
        for seed, step in [(3, 7), (4, 7), (3, 8), (5, 9)]
    }
    assert len(others) > 1


def test_numbers_are_spread_over_the_rows_of_a_part():
    rows = [6, 7, 0, 1]
    apart = Noise(0, 7, range(8), 8).of_rows(rows).spread()
    torch.testing.assert_close(apart.sort().values.diff(), torch.full((3,), 0.25))
    here = Noise(0, 7, range(4), 8).of_rows(rows)
    assert here.rows == [0, 1] and torch.equal(here.uniform(3), Noise(0, 7, range(2), 8).uniform(3))
    assert torch.equal(here.spread().sort().values, apart[:2].sort().values)


# ---- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ALONE)
def test_a_mixture_of_one_is_that_objective_to_the_bit(objective):
    name = objective.partition("=")[2]
    model = random_model(objective, *NEEDS.get(objective, []))
    alone, mixed = part(name), mixture(name, mode_tokens=True)
    documents = batch(given=name == "seq2seq")
    results = []
    for learn in (alone, mixed):
        assert model.vocab_size == VOCAB + learn.extra_tokens
        inputs = learn.inputs(documents, noise(), model)
        loss = learn.loss(model.train(), inputs)
        results.append([loss, *gradients(model.eval(), loss)])
        with torch.no_grad():
            results[-1].append(learn.nats(model, documents, noise(step="evaluation")))
        assert learn.counted(documents, inputs) == alone.counted(
            documents, alone.inputs(documents, noise(), model)
        )
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    prompts = ["", "AB", "ABCDEFG"]
    written = [learn.generate(model, Letters(), prompts, sampling()) for learn in (alone, mixed)]
    assert written[0] == written[1]
    for attribute in ("bound", "fills_holes", "gives_memory", "sampling_options", "attends"):
        assert getattr(mixed, attribute) == getattr(alone, attribute), attribute


def test_the_loss_is_the_sum_of_each_rows_own():
    """Every row is learnt as its part would learn it in any batch, with the same gradient."""
    mixed = mixture("causal", "prefix", weights={"prefix": 2})
    model, documents = random_model("objective=causal"), batch(6)
    inputs = mixed.inputs(documents, noise(6), model)
    assert Counter(inputs.part_of) == {0: 2, 1: 4}
    total = counted = 0
    for row, number in enumerate(inputs.part_of):
        learn, own = part(["causal", "prefix"][number]), documents.rows(slice(row, row + 1))
        its_inputs = learn.inputs(own, Noise(0, 7, range(row, row + 1), 6), model)
        total += learn.loss(model, its_inputs)
        counted += learn.counted(own, its_inputs)
    assert mixed.counted(documents, inputs) == counted
    expected = gradients(model, total)
    loss = mixed.loss(model, inputs)
    torch.testing.assert_close(loss, total)
    for one, other in zip(gradients(model, loss), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_micro_batches_and_processes_change_nothing():
    mixed = mixture("causal", "fim", "prefix", "masked", mode_tokens=True)
    model, documents = model_for(mixed), batch(8)
    inputs = mixed.inputs(documents, noise(8), model)
    whole = mixed.loss(model, inputs)
    for rows in (1, 3, 8):
        pieces = [inputs.rows(slice(start, start + rows)) for start in range(0, 8, rows)]
        torch.testing.assert_close(sum(mixed.loss(model, piece) for piece in pieces), whole)
    halves = [
        mixed.inputs(documents.rows(slice(own.start, own.stop)), Noise(0, 7, own, 8), model)
        for own in (range(0, 4), range(4, 8))
    ]
    torch.testing.assert_close(sum(mixed.loss(model, half) for half in halves), whole)
    assert [*halves[0].part_of, *halves[1].part_of] == inputs.part_of


def test_objectives_of_decoders_learn_together():
    mixed = mixture("causal", "fim", "prefix", "masked", "blocks", mode_tokens=True)
    model, documents = model_for(mixed).train(), batch(10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, losses = mixed.inputs(documents, noise(10), model), []
    assert set(inputs.part_of) == set(range(5))
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(mixed.loss(model, inputs))
        losses[-1].backward()
        assert all(param.grad.isfinite().all() for param in model.parameters())
        optimizer.step()
    assert losses == sorted(losses, reverse=True)


def test_each_part_is_compiled():
    mixed = mixture("causal", "prefix")
    model, documents = model_for(mixed).train(), batch(4)
    graphs: list[int] = []

    def backend(graph, example_inputs):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(mixed.loss, backend=backend)
    inputs = mixed.inputs(documents, noise(), model)
    torch.testing.assert_close(compiled(model, inputs), mixed.loss(model, inputs))
    assert max(graphs) > 50


# ---- as it is typed ------------------------------------------------------------------------------

WITHOUT_DENOISERS = [f"objective.weights.{name}=0" for name in "srx"]


def added(**names: str) -> list[str]:
    return [f"+objective@objective.of.{name}={choice}" for name, choice in names.items()]


def test_parts_are_typed():
    words = ["objective=mixture", *WITHOUT_DENOISERS, *added(next="causal", fill="fim")]
    words += ["+objective.weights.fill=3", "objective.of.fill.rate=0.9", "objective.evaluate=fill"]
    cfg = minllm.compose(words)
    model, mixed = build_model(cfg, SimpleNamespace(vocab_size=VOCAB)), build(cfg.objective)
    assert [*mixed.of] == ["next", "fill"] and mixed.weights == [1, 3] and mixed.of["fill"].rate == 0.9
    assert mixed.evaluated == "fill" and mixed.fills_holes and model.vocab_size == VOCAB + 3 + 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "objective=span needs a model with an encoder: add model/encoder=same model/layout=decoder"),
        (
            [*ENCODER, *added(c="causal")],
            "of.s needs a model with an encoder, which objective.of.c can't use",
        ),
        ([*WITHOUT_DENOISERS], "has no part"),
        ([*ENCODER, "objective.evaluate=q"], "objective.evaluate names 'q', which isn't a part: .* s, r, x"),
        (
            [*ENCODER, "objective.weights.r=0", "objective.evaluate=r"],
            "names 'r', which isn't a part: .* s, x",
        ),
        ([*ENCODER, "+objective.weights.y=1"], "objective.weights names 'y'"),
        ([*ENCODER, "objective.weights.x=-1"], "each a number of 0 or more"),
        (
            [*ENCODER, "objective.of.x.mean_span=0.5", "objective.of.x.sentinels=1"],
            "set objective.of.x.sentinels=",
        ),
        ([*WITHOUT_DENOISERS, *added(a="causal", b="diffuseq")], "objective.of.b has parameters of its own"),
        ([*WITHOUT_DENOISERS, *added(a="causal", b="mixture")], "objective.of.b is a mixture itself"),
        (
            [*WITHOUT_DENOISERS, *added(a="causal"), "objective.of.a.predict_ahead=1"],
            "a.predict_ahead must be 0",
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:30],
)
def test_what_cannot_be_mixed_is_refused(words, sentence):
    with pytest.raises(UserError, match=sentence):
        build_model(minllm.compose(["objective=mixture", *words]), SimpleNamespace(vocab_size=VOCAB))


def test_rows_must_suit_every_part():
    mixed = mixture("causal", "masked")
    mixed.check(SimpleNamespace(packing="pad"))
    with pytest.raises(UserError, match="data.packing=pad"):
        mixed.check(SimpleNamespace(packing="concat"))


@pytest.mark.parametrize(
    ("names", "attends"),
    [
        (["causal", "fim"], "past"),
        (["causal", "prefix"], "given"),
        (["causal", "masked"], "all"),
        (["prefix", "masked"], "given"),
        (["causal", "blocks"], "blocks"),
    ],
)
def test_mixers_must_see_what_any_part_sees(names, attends):
    assert mixture(*names).attends == attends


def test_recurrent_mixers_read_both_ways_only_for_parts_that_look_ahead():
    mixed = mixture("causal", "masked")
    model = model_for(
        mixed, "objective=masked", "model/rec=min_gru", "model.layout=[rec mlp]", "model.both_ways=true"
    )
    documents = batch(1)
    changed = documents.tokens_BT.clone()
    changed[0, T - 1] = (changed[0, T - 1] + 1) % VOCAB
    with torch.no_grad():
        assert torch.equal(model.hidden(changed)[:, :-1], model.hidden(documents.tokens_BT)[:, :-1])
        inputs = mixed.of["masked"].inputs(documents, noise(1), model)
        other = inputs.tokens_BS.clone()
        other[0, T - 1] = (other[0, T - 1] + 1) % VOCAB
        outputs = [model.hidden(tokens, sight=inputs.sight)[0, 0] for tokens in (inputs.tokens_BS, other)]
    assert not torch.equal(*outputs)
