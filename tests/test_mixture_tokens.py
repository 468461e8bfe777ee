"""What a mixture's parts read and write: their special tokens, mode tokens, and the part that evaluates."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from minllm.data.batches import IGNORED, Batch
from minllm.errors import UserError
from minllm.objective import HOLE, Objective
from minllm.objective.mixture import Mixture
from tests.objectives import ENCODER, EOS, Letters, batch, mixture, model_for, noise, part, sampling
from tests.tiny import VOCAB

# ---- special tokens ------------------------------------------------------------------------------


def test_special_tokens_of_different_meanings_have_different_ids():
    mixed = mixture("fim", "masked", "causal", "blocks", mode_tokens=True)
    model = model_for(mixed)
    ids = {name: set(own.special_ids(model)) for name, own in mixed.of.items()}
    modes = {mixed.mode_id(model, name) for name in mixed.of}
    assert ids["masked"] == ids["blocks"] and len(ids["fim"]) == 3 and not ids["causal"] and len(modes) == 4
    assert sorted([*ids["fim"], *ids["masked"], *modes]) == [*range(VOCAB, model.vocab_size)]
    assert all(own.text_size(model) == VOCAB for own in (mixed, *mixed.of.values()))


def test_denoisers_share_their_sentinels():
    mixed = part("mixture", *ENCODER)
    model = model_for(mixed, "objective=mixture", *ENCODER)
    assert {own.special_ids(model) for own in mixed.of.values()} == {range(VOCAB, VOCAB + 32)}
    assert model.vocab_size == VOCAB + 32 + 3


def special_tokens_read(model) -> set[int]:
    """Return a set to which the special tokens are added that a model reads from now on."""
    read: set[int] = set()

    def noting(method):
        def noted(tokens, *args, **options):
            read.update(token for token in tokens.flatten().tolist() if token >= VOCAB)
            return method(tokens, *args, **options)

        return noted

    model.hidden, model.encode = noting(model.hidden), noting(model.encode)
    return read


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["masked", "fim", "causal", "blocks"], []),
        (["seq2seq", "span"], ["objective=seq2seq", *ENCODER]),
    ],
    ids=" ".join,
)
@torch.no_grad()
def test_a_part_reads_its_own_special_tokens_only(names, words):
    """In training, evaluation and writing."""
    for name in names:
        mixed = mixture(*names, evaluate=name, mode_tokens=True)
        model, documents = model_for(mixed, *words), batch(8, given=True)
        read = special_tokens_read(model)
        allowed, mode = mixed.of[name].special_ids(model), mixed.mode_id(model, name)
        mixed.nats(model, documents, noise(8, step="evaluation"))
        prompt = f"AB{HOLE}YZ" if mixed.fills_holes else "AB"
        mixed.generate(model, OtherLetters(), [prompt], sampling(max_new_tokens=3))
        assert read - {mode} in (set(allowed), set(allowed[:1]))  # a single sentinel
        own = mixed.inputs(documents, noise(8), model).own[[*mixed.of].index(name)]
        mixed.of[name].loss(model, own)
        assert read and read <= {*allowed, mode}


@torch.no_grad()
def test_a_part_predicts_no_special_tokens_of_others():
    """A model whose output is zero guesses among the tokens that may be predicted."""
    mixed = mixture("causal", "fim", "prefix", "blocks", mode_tokens=True)
    model, documents = model_for(mixed), batch(8)
    model.embedding.zero_()
    inputs = mixed.inputs(documents, noise(8), model)
    for learn, own in list(zip(mixed.of.values(), inputs.own))[:3]:
        expected = (own.targets_BT != IGNORED).sum() * math.log(VOCAB)
        torch.testing.assert_close(learn.loss(model, own), expected)
    blocks = inputs.own[3]
    expected = ((blocks.targets_BT != IGNORED) * blocks.weights_BT).sum() * math.log(VOCAB)
    torch.testing.assert_close(mixed.of["blocks"].loss(model, blocks), expected)

    denoisers = part("mixture", *ENCODER)
    model = model_for(denoisers, "objective=mixture", *ENCODER)
    model.embedding.zero_()
    inputs = denoisers.inputs(documents, noise(8), model)
    counted = denoisers.counted(documents, inputs)
    torch.testing.assert_close(denoisers.loss(model, inputs), torch.tensor(counted * math.log(VOCAB + 32)))


class Predicting(Objective):
    extra_tokens, predicts_special, special_name = 2, True, "tags"
    gives_memory = True


class Reading(Predicting):
    predicts_special, special_name = False, None


def test_special_tokens_that_are_predicted_come_first():
    of = {"own": Reading, "span": lambda: part("span")}
    mixed = Mixture(of=of, weights={}, evaluate=None, mode_tokens=True)
    model = SimpleNamespace(vocab_size=VOCAB + mixed.extra_tokens)
    assert mixed.of["span"].special_ids(model) == range(VOCAB, VOCAB + 32)
    assert mixed.of["own"].special_ids(model) == range(VOCAB + 32, VOCAB + 34)


def test_parts_that_would_predict_each_others_special_tokens_are_refused():
    of = {"span": lambda: part("span"), "own": Predicting}
    with pytest.raises(UserError, match="objective.of.span and objective.of.own predict different special"):
        Mixture(of=of, weights={}, evaluate=None, mode_tokens=True)


# ---- mode tokens ---------------------------------------------------------------------------------


def test_documents_begin_with_the_mode_of_their_part():
    mixed = mixture("causal", "prefix", mode_tokens=True)
    model, documents = model_for(mixed), batch(4)
    documents = Batch(
        documents.tokens_BT, documents.targets_BT, None, None, EOS, EOS, EOS
    )  # all the same token
    documents.tokens_BT[:, 1:][documents.targets_BT[:, 1:] == IGNORED] = EOS
    inputs = mixed.inputs(documents, noise(), model)
    for name, own, number in zip(mixed.of, inputs.own, range(2)):
        rows = [row for row, other in enumerate(inputs.part_of) if other == number]
        assert (own.tokens_BS[:, 0] == mixed.mode_id(model, name)).all() and len(rows) == 2
        assert torch.equal(own.tokens_BS[:, 1:], documents.tokens_BT[rows, 1:])
        assert (own.targets_BT < VOCAB).all()


def test_decoders_begin_with_the_mode_too():
    mixed = part("mixture", *ENCODER)
    model = model_for(mixed, "objective=mixture", *ENCODER)
    for given in (False, True):
        inputs = mixed.inputs(batch(9, given=given), noise(9), model)
        for name, own in zip(mixed.of, inputs.own):
            assert (own.tokens_BS[:, 0] == mixed.mode_id(model, name)).all()
            assert own.tokens_BS[:, 1:].max() < VOCAB + 32 > own.source_BS.max()


# ---- evaluating and writing ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["causal", "fim", "prefix", "masked"])
@torch.no_grad()
def test_evaluation_and_writing_are_those_of_the_named_part(name):
    names = ["causal", "fim", "prefix", "masked"]
    mixed, alone = mixture(*names, evaluate=name, mode_tokens=True), part(name)
    model, documents = model_for(mixed), batch(given=name == "prefix")
    mode = mixed.mode_id(model, name)
    begun = documents.tokens_BT.clone()
    begun[:, 0] = mode
    nats_B = mixed.nats(model, documents, noise(step="evaluation"))
    if name == "masked":
        told = Batch(begun, documents.targets_BT, None, documents.given_BT, 3, mode, EOS)
        assert torch.equal(nats_B, mixed.of[name].nats(model, told, noise(step="evaluation")))
        assert (mixed.bound, mixed.predicts_in_order) == ("upper", False)
    else:
        inputs = alone.inputs(documents, noise(), model)
        sight = inputs.sight if name == "prefix" else type(inputs.sight)()
        logits = model.logits(model.hidden(begun, sight=sight))[..., :VOCAB].mT
        each_BT = F.cross_entropy(logits, documents.targets_BT, reduction="none", ignore_index=IGNORED)
        torch.testing.assert_close(nats_B, each_BT.sum(1))
        assert (mixed.bound, mixed.predicts_in_order) == ("exact", True)
        first = logits[0, :, 0].argmax().item()
        (text,) = mixed.generate(model, OtherLetters(), [""], sampling(temperature=0.0, max_new_tokens=1))
        if name != "prefix":
            assert text == ("" if first == EOS else chr(first + 59))
    assert mixed.sampling_options == alone.sampling_options and mixed.fills_holes == alone.fills_holes
    if alone.fills_holes:
        text, other = mixed.generate(model, OtherLetters(), [f"AB{HOLE}YZ", f"AB{HOLE}YX"], sampling())
        assert text != other


class OtherLetters(Letters):
    """Letters whose texts begin with the tokenizer's `bos_id`, whichever that is."""

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        return [self.bos_id] * bos + super().encode(text, eos=eos)
