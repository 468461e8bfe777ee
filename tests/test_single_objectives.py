"""What is special about single objectives; test_objectives.py has what holds for every objective."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from minllm.data.batches import IGNORED, Batch
from minllm.errors import UserError
from minllm.generation.unmask import unmask
from minllm.model.context import Sight
from minllm.objective import HOLE
from minllm.objective.blocks import Blocks, Canvas
from minllm.objective.schedule import masking
from minllm.schema.building import build
from minllm.tasks.generate import filled
from tests.objectives import EOS, PADDING, Letters, batch, made, noise, sampling
from tests.tiny import VOCAB, T, tiny_cfg

# ---- what tokens may see -------------------------------------------------------------------------


def changes(objective: str, given: bool, words: Sequence[str] = ()) -> torch.Tensor:
    """Return which of a row's inputs change the output at which place, bool (outputs, inputs)."""
    model, learn = made(objective, *words)
    documents = batch(1, given=given)
    inputs = learn.inputs(documents, noise(1), model)

    def outputs(tokens_BS):
        return model.hidden(tokens_BS, inputs.segments_BS, sight=inputs.sight)[0]

    with torch.no_grad():
        before_SD = outputs(inputs.tokens_BS)
        rows = []
        for place in range(inputs.tokens_BS.shape[1]):
            changed_BS = inputs.tokens_BS.clone()
            changed_BS[0, place] = (changed_BS[0, place] + 1) % VOCAB
            rows.append((outputs(changed_BS) != before_SD).any(1))
    return torch.stack(rows, 1)


def test_masked_sees_everything():
    assert changes("objective=masked", given=False).all()


def test_a_prefix_is_read_in_both_directions_and_the_rest_from_left_to_right():
    seen = changes("objective=prefix", given=True)
    place = torch.arange(T)
    known = T // 2  # inputs are one behind: the last of these predicts the first target
    expected = (place[None] <= place[:, None]) | ((place[:, None] <= known) & (place[None] <= known))
    assert torch.equal(seen, expected)


def test_blocks_see_themselves_and_the_clean_blocks_before():
    seen, block = changes("objective=blocks", given=False, words=["objective.block=6"]), 6
    of = torch.arange(T) // block
    earlier, same = of[None] < of[:, None], of[None] == of[:, None]
    noised = torch.cat([same, earlier], 1)
    clean = torch.cat([torch.zeros_like(same), same | earlier], 1)
    assert torch.equal(seen, torch.cat([noised, clean]))


# ---- diffusion -----------------------------------------------------------------------------------


def likelihood_bound(model, documents: Batch, block: int) -> float:
    """Return the exact evidence bound of one document, over all ways to mask each block."""
    canvas, total = Canvas(documents, block, T), 0.0
    for number in range(canvas.blocks):
        places = (canvas.open_BT[0] & (canvas.block_T == number)).nonzero()[:, 0].tolist()
        for k in range(1, len(places) + 1):
            ways = list(itertools.combinations(places, k))
            for chosen in ways:
                masked_BT = torch.zeros_like(canvas.open_BT)
                masked_BT[0, list(chosen)] = True
                inputs = canvas.inputs(masked_BT, torch.ones(masked_BT.shape), VOCAB)
                x_BSD = model.hidden(inputs.tokens_BS, inputs.segments_BS, sight=inputs.sight)
                logits = model.logits(x_BSD)[0, list(chosen), :VOCAB]
                loss = F.cross_entropy(logits, documents.text_BT[0, list(chosen)], reduction="sum").item()
                total += loss / k / len(ways)
    return total


def repeated(document: Batch, rows: int) -> Batch:
    """Return a batch of one document in each row."""
    return Batch(
        *(x.expand(rows, -1) for x in (document.tokens_BT, document.targets_BT)), None, None, PADDING
    )


@pytest.mark.parametrize("block", [1, 2, 4])
@torch.no_grad()
def test_estimates_are_unbiased(block):
    """The mean over many draws is the bound that all ways of masking give, in evaluation and in training."""
    model, _ = made("objective=blocks")
    document = batch(1, length=4)
    options = {"block": block, "length": 4, "weighted": True, "chain_rule": False}
    learn = Blocks(**options, schedule="log_linear", draws=3)
    exact = likelihood_bound(model, document, block)
    # the noise of each row is its own
    draws = learn.nats(model, repeated(document, 200), noise(200)).tolist()
    spread = torch.tensor(draws).std().item() / math.sqrt(len(draws))
    assert sum(draws) / len(draws) == pytest.approx(exact, abs=4 * spread + 1e-4 * exact)
    if block == 1:
        alone = {learn.nats(model, document, noise(1, seed=seed)).item() for seed in range(4)}
        assert len(alone) == 1 and [*alone, *draws] == pytest.approx([exact] * 201, rel=1e-5)

    rows = repeated(document, 500)
    for schedule in ("log_linear", "cosine", "linear"):
        learn = Blocks(**options, schedule=schedule, draws=1)
        mean = sum(
            learn.loss(model, learn.inputs(rows, noise(500, seed=seed), model)).item() for seed in range(4)
        )
        assert mean / 2000 == pytest.approx(exact, rel=0.1)


@torch.no_grad()
def test_a_block_for_the_whole_row_is_masked_diffusion_to_the_bit():
    model, masked = made("objective=masked")
    options = {"schedule": "log_linear", "weighted": True, "draws": 4, "chain_rule": False, "length": T}
    blocks = Blocks(block=T, **options)
    documents = batch(given=True)
    losses = [learn.loss(model, learn.inputs(documents, noise(), model)) for learn in (masked, blocks)]
    assert torch.equal(*losses)
    assert torch.equal(*(learn.nats(model, documents, noise()) for learn in (masked, blocks)))


@torch.no_grad()
def test_the_chain_rule_is_the_likelihood_of_unmasking_from_left_to_right():
    model, masked = made("objective=masked", "objective.chain_rule=true")
    document = batch(1, length=T)
    assert masked.bound == "exact"
    text_T, expected = document.text_BT[0], 0.0
    for place in range(T):
        noised_1T = torch.where(torch.arange(T) < place, text_T, VOCAB)[None]
        logits_V = model.logits(model.hidden(noised_1T, sight=Sight(sees_all=True)))[0, place, :VOCAB]
        expected += F.cross_entropy(logits_V, text_T[place]).item()
    assert masked.nats(model, document, noise(1)).item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_a_documents_length_is_not_given_away():
    """The cost of a short document includes the padding of its block."""
    short = batch(1, length=T // 2)
    assert Canvas(short, T, T).open_BT.all()


@pytest.mark.parametrize("schedule", ["log_linear", "cosine", "linear"])
def test_schedules_rise_and_weights_are_their_slope(schedule):
    t = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    p, weight = masking(t, schedule)
    later, _ = masking(t + 1e-6, schedule)
    assert (p.diff() > 0).all() and (p > 0).all() and (p <= 1).all()
    torch.testing.assert_close(weight, (later - p) / 1e-6 / p, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [None, 1, 3])
@pytest.mark.parametrize("unmask", ["confident", "random"])
@pytest.mark.parametrize("objective", ["objective=masked", "objective=blocks"])
def test_unmasking_keeps_the_prompt_and_leaves_no_mask(objective, unmask, steps):
    model, learn = made(objective)
    states: list[str] = []
    options = sampling(steps=steps, unmask=unmask, trace=1)
    (text,) = learn.generate(model, Letters(), ["ABCD"], options, states.append)
    assert "".join(states).endswith("ABCD" + text) and all(state.startswith("ABCD") for state in states)
    passes = len(states) - 1
    assert passes <= (steps or T) * math.ceil(13 / learn.block) if steps else passes >= 1
    assert not set(text) & {"░", chr(VOCAB + 59)}


class Ending(SimpleNamespace):
    """A model of independent tokens: 0 ends a text, with a probability of 0.3 in the first half and 0.99 after it."""

    vocab_size, embedding = 11, torch.zeros(1)

    def hidden(self, tokens_BT: torch.Tensor, sight: object) -> torch.Tensor:
        end_T = torch.where(torch.arange(8) < 4, 0.3, 0.99)[:, None]
        return torch.cat([end_T, (1 - end_T).expand(8, 9) / 9], dim=1).log()[None]

    def logits(self, x_ND: torch.Tensor) -> torch.Tensor:
        return x_ND


@pytest.mark.parametrize("order, share", [("random", (0.6, 0.8)), ("confident", (0, 0.55))])
def test_a_random_order_draws_from_the_model_and_a_confident_one_favours_frequent_tokens(order, share):
    random, texts = torch.Generator().manual_seed(0), []
    for _ in range(200):
        text_T = torch.full((8,), 10)
        for _ in unmask(Ending(), text_T, 10, 0, 8, sampling(unmask=order), random, 10):
            pass
        texts.append(text_T)
    goes_on = (torch.stack(texts)[:, 0] != 0).float().mean().item()
    assert share[0] <= goes_on <= share[1], "0.7 is the probability of a text that isn't empty"


def test_rows_with_several_documents_are_refused():
    masked = build(tiny_cfg("objective=masked").objective)
    with pytest.raises(UserError, match="data.packing=pad"):
        masked.check(SimpleNamespace(packing="pack"))


# ---- prefix and fill in the middle ---------------------------------------------------------------


def test_plain_documents_are_given_up_to_a_random_place():
    model, prefix = made("objective=prefix")
    counts = set()
    for seed in range(20):
        documents = batch(seed=seed)
        inputs = prefix.inputs(documents, noise(seed=seed), model)
        counted_B = (inputs.targets_BT != IGNORED).sum(1)
        assert (counted_B >= 1).all() and prefix.counted(documents, inputs) == counted_B.sum()
        counts |= set(counted_B.tolist())
    assert len(counts) > 10


@pytest.mark.parametrize("spm", [0.0, 1.0])
def test_the_middle_comes_last(spm):
    model, fim = made("objective=fim", "objective.rate=1", f"objective.spm={spm}")
    pre, suf, mid = range(VOCAB, VOCAB + 3)
    for seed in range(20):
        documents = batch(seed=seed)
        inputs = fim.inputs(documents, noise(seed=seed), model)
        for row, ids in enumerate(inputs.tokens_BS.tolist()):
            targets = inputs.targets_BT[row].tolist()
            end = targets.index(EOS)
            ids = ids[: end + 1]
            assert ids[0] == EOS and ids[1] == pre
            after_suf, after_mid = (
                ids[ids.index(suf) + 1 : ids.index(mid)],
                ids[ids.index(mid) + 1 :],
            )
            original = [t for t in documents.targets_BT[row].tolist() if t != IGNORED][:-1]
            if spm:
                assert ids[2] == suf
                found = after_mid + after_suf
            else:
                found = ids[2 : ids.index(suf)] + after_mid + after_suf
            # a full row has no room for the special tokens
            assert found == original[: len(found)] and len(found) >= len(original) - 3
            for here, target in zip(ids[1:], targets):
                assert target == (IGNORED if here >= VOCAB else here)


def test_a_target_without_room_for_special_tokens_stays_as_it_is():
    model, fim = made("objective=fim", "objective.rate=1")
    documents = batch(1, given=True)
    for room in range(1, 8):
        given_BT = torch.arange(T)[None] < T - room
        row = replace(
            documents,
            targets_BT=documents.text_BT.masked_fill(given_BT, IGNORED),
            given_BT=given_BT,
        )
        inputs = fim.inputs(row, noise(1), model)
        assert (inputs.targets_BT == EOS).sum() == 1
        assert torch.equal(inputs.tokens_BS, row.tokens_BT) == (room < 5)


def test_several_targets_in_a_row_are_not_rearranged():
    fim = build(tiny_cfg("objective=fim").objective)
    fim.check(build(tiny_cfg("data.packing=concat").data))
    fim.check(build(tiny_cfg("data=reverse", "data.packing=pad").data))
    with pytest.raises(UserError, match="puts several pairs there: choose data.packing=pad"):
        fim.check(build(tiny_cfg("data=reverse", "data.packing=concat").data))


@torch.no_grad()
def test_fill_in_the_middle_is_evaluated_from_left_to_right():
    model, fim = made("objective=fim")
    documents = batch(given=True)
    logits = model(documents.tokens_BT)[..., :VOCAB].mT
    expected_BT = F.cross_entropy(logits, documents.targets_BT, reduction="none", ignore_index=IGNORED)
    torch.testing.assert_close(fim.nats(model, documents, noise()), expected_BT.sum(1))


@pytest.mark.parametrize("objective", ["objective=fim", "objective=masked"])
def test_a_hole_is_filled_by_what_both_sides_say(objective):
    model, learn = made(objective)
    assert learn.fills_holes
    text, other = learn.generate(model, Letters(), [f"AB{HOLE}YZ", f"AB{HOLE}YX"], sampling())
    assert text != other and len(text) <= 9


@pytest.mark.parametrize("objective", ["objective=fim", "objective=masked", "objective=span"])
def test_a_space_before_a_hole_belongs_to_the_filling(objective):
    """No token of the texts is a space alone."""
    model, learn = made(objective)
    spaced, joined = f"AB {HOLE}YZ", f"AB{HOLE}YZ"
    read = []

    class Noted(Letters):
        def encode(self, text, **ends):
            read.append(text)
            return super().encode(text, **ends)

    (text,) = learn.generate(model, Noted(), [spaced], sampling())
    assert read == ["AB", "YZ"]
    assert filled(spaced, text) == filled(joined, text) == f"AB{text}YZ"
