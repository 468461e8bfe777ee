"""What every objective must prove: each YAML of conf/objective is held to it at a tiny size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import minllm
from minllm.data.batches import IGNORED, Batch, Rows
from minllm.errors import UserError, printable
from minllm.generation.sampler import Sampling
from minllm.generation.unmask import HIDDEN, unmask
from minllm.model.build import build_model
from minllm.model.context import PAD, Sight
from minllm.objective import HOLE
from minllm.objective.blocks import Blocks, Canvas
from minllm.objective.noise import Noise
from minllm.objective.schedule import masking
from minllm.schema.building import build
from minllm.tasks.evaluate import evaluate
from minllm.tasks.generate import filled, generate
from minllm.training.train import train
from tests.tiny import VOCAB, T, options, random_model, tiny_cfg, tokens

PADDING, EOS = 3, 5


def batch(rows: int = 4, *, given: bool = False, seed: int = 0, length: int = T) -> Batch:
    """Return documents of different lengths in rows of their own, half of each given if asked for."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(6, VOCAB, (rows, length), generator=generator)
    lengths = torch.linspace(length, length // 2, rows).long()[:, None]
    place = torch.arange(length)
    text = torch.where(place == lengths - 1, EOS, torch.where(place < lengths, text, PADDING))
    tokens_BT = torch.cat([torch.full((rows, 1), EOS), text[:, :-1]], 1)
    targets_BT = torch.where(place < lengths, text, IGNORED)
    given_BT = (place < lengths // 2) if given else None
    if given:
        targets_BT = targets_BT.masked_fill(given_BT, IGNORED)
    return Batch(tokens_BT, targets_BT, None, given_BT, PADDING, EOS, EOS)


def noise(rows: int = 4, seed: int = 0, step: int | str = 7) -> Noise:
    return Noise(seed, step, range(rows), rows)


def made(objective: str, *more: str):
    """Return a model with random weights, and the objective that it learns."""
    choices = (objective, *NEEDS.get(objective, []), *more)
    return random_model(*choices), build(tiny_cfg(*choices).objective)


ENCODER = ["model/encoder=same", "model/layout=decoder"]
NEEDS = {"objective=mixture": ENCODER, "objective=seq2seq": ENCODER, "objective=span": ENCODER}
OF_ONE_ROW = [name for name in options("objective") if name not in ("objective=diffuseq", *NEEDS)]
"""Objectives that predict the tokens of a row. The others have these laws in their own files: test_diffuseq.py,
test_mixture.py and test_seq2seq.py."""

every_objective = pytest.mark.parametrize("objective", options("objective"))
every_document = pytest.mark.parametrize(
    ("objective", "given"),
    [
        pytest.param(name, given, id=f"{name}-{'pairs' if given else 'plain'}")
        for name in options("objective")
        for given in (False, True)
        if given or name != "objective=seq2seq"
    ],
)


def tensors(inputs: Rows) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of inputs by name, those of the parts of a mixture included."""
    for name, value in vars(inputs).items():
        if isinstance(value, torch.Tensor):
            yield name, value
    for number, own in enumerate(getattr(inputs, "own", [])):
        if own is not None:
            yield from ((f"{number}.{name}", value) for name, value in tensors(own))


# ---- every objective -----------------------------------------------------------------------------


@every_document
def test_it_learns(objective, given):
    """Each step lowers the loss for the same batch and the same noise, and every parameter gets a gradient."""
    model, learn = made(objective)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = learn.inputs(batch(given=given), noise(), model)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(learn.loss(model, inputs))
        losses[-1].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert losses == sorted(losses, reverse=True) and losses[-1].isfinite()


@every_document
def test_micro_batches_change_nothing(objective, given):
    model, learn = made(objective)
    inputs = learn.inputs(batch(given=given), noise(), model)
    whole = learn.loss(model, inputs)
    parts = sum(learn.loss(model, inputs.rows(slice(i, i + 1))) for i in range(4))
    torch.testing.assert_close(parts, whole)


@every_objective
def test_processes_change_nothing(objective):
    """Rows that another process has are noised as they would be here."""
    model, learn = made(objective)
    documents = batch(given=objective == "objective=seq2seq")
    whole = learn.inputs(documents, noise(), model)
    for rows in (range(0, 1), range(1, 4)):
        own = learn.inputs(documents.rows(slice(rows.start, rows.stop)), Noise(0, 7, rows, 4), model)
        expected = whole.rows(slice(rows.start, rows.stop))
        for name, value in tensors(own):
            if name != "rows_B":  # places in the own rows
                assert torch.equal(value, dict(tensors(expected))[name]), name


@every_document
@torch.no_grad()
def test_it_is_evaluated_alike_in_any_batch(objective, given):
    """And the same twice: the noise of an evaluation depends on the row alone."""
    model, learn = made(objective)
    documents = batch(given=given)
    whole_B = learn.nats(model, documents, noise(step="evaluation"))
    assert torch.equal(whole_B, learn.nats(model, documents, noise(step="evaluation")))
    for row in range(4):
        alone = documents.rows(slice(row, row + 1))
        nats = learn.nats(model, alone, Noise(0, "evaluation", range(row, row + 1), 4))
        torch.testing.assert_close(nats[0], whole_B[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", OF_ONE_ROW)
@torch.no_grad()
def test_a_model_whose_output_is_zero_has_the_loss_of_a_uniform_guess(objective):
    """ln V for each token that counts; diffusion also pays for the padding up to the end of its block."""
    model, learn = made(objective)
    model.embedding.zero_()
    documents = batch(given=True)
    counted_B = (documents.targets_BT != IGNORED).sum(1)
    if isinstance(learn, Blocks):
        counted_B = Canvas(documents, learn.block, learn.length).open_BT.sum(1)
    nats_B = learn.nats(model, documents, noise())
    torch.testing.assert_close(nats_B, counted_B * math.log(VOCAB), rtol=1e-5, atol=0)


@pytest.mark.parametrize("objective", OF_ONE_ROW)
@torch.no_grad()
def test_the_given_part_is_neither_noised_nor_counted(objective):
    model, learn = made(objective)
    documents = batch(given=True)
    inputs = learn.inputs(documents, noise(), model)
    seen_BT = inputs.tokens_BS[:, :T] == documents.text_BT
    shifted_BT = inputs.tokens_BS[:, :T] == documents.tokens_BT
    given_BT = documents.given_BT
    assert (seen_BT | shifted_BT)[given_BT].all()
    if inputs.targets_BT.shape == given_BT.shape:
        assert (inputs.targets_BT[given_BT] == IGNORED).all()


@every_objective
def test_recurrent_mixers_go_with_it_or_are_refused(objective):
    learn = build(tiny_cfg(objective).objective)
    words = [objective, "model/rec=mamba", "model.layout=[rec mlp]"]
    if learn.gives_memory:
        words = [
            objective,
            *ENCODER,
            "model/rec=mamba",
            "model.layout=[rec cross mlp]",
            "model.encoder.layout=[attn mlp]",
        ]
    if learn.attends == "past":
        assert random_model(*words)
        return
    with pytest.raises(UserError, match="reads from left to right only: .*choose attention"):
        build_model(tiny_cfg(*words), SimpleNamespace(vocab_size=VOCAB))
    if learn.attends != "all":
        with pytest.raises(UserError, match="model.both_ways=true would do nothing"):
            build_model(tiny_cfg(*words, "model.both_ways=true"), SimpleNamespace(vocab_size=VOCAB))


@pytest.mark.parametrize("rec", options("model/rec"))
@torch.no_grad()
def test_recurrent_mixers_read_both_ways(rec):
    """Tokens see earlier and later ones of their own document only, which in a packed row gives what it gives alone."""
    model = random_model("objective=masked", rec, "model.layout=[rec mlp]", "model.both_ways=true")
    tokens_BT, sight = tokens(1), Sight(sees_all=True)
    segments_BT = torch.tensor([[0] * 9 + [1] * 11 + [PAD] * 4])
    whole = model.hidden(tokens_BT, segments_BT, sight=sight)
    for place, own in ((0, slice(0, 9)), (8, slice(0, 9)), (9, slice(9, 20)), (19, slice(9, 20))):
        changed_BT = tokens_BT.clone()
        changed_BT[0, place] = (changed_BT[0, place] + 1) % VOCAB
        differs_T = (model.hidden(changed_BT, segments_BT, sight=sight) - whole).abs().amax(2)[0] > 1e-5
        assert differs_T[place] and differs_T[own].sum() == differs_T.sum()
        near = slice(max(own.start, place - 3), min(own.stop, place + 4))  # a convolution reaches only so far
        assert differs_T[near].all()
        alone = model.hidden(tokens_BT[:, own], sight=sight)
        torch.testing.assert_close(whole[:, own], alone, rtol=1e-4, atol=1e-4)


class Letters:
    """A tokenizer of letters."""

    vocab_size, eos_id, bos_id, pad_id = VOCAB, EOS, EOS, PADDING

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        return [EOS] * bos + [ord(letter) - 59 for letter in text] + [EOS] * eos

    def encode_batch(self, texts, *, bos: bool = False):
        return [self.encode(text, bos=bos) for text in texts]

    def decode(self, ids) -> str:
        return "".join(chr(id + 59) for id in ids)

    def token_bytes(self, id: int) -> bytes:
        return chr(id + 59).encode()


def sampling(**changed) -> Sampling:
    options = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0, "max_new_tokens": 9, "seed": 0}
    return Sampling(**{**options, **changed})


@every_objective
def test_it_writes_after_prompts_of_any_length(objective):
    """A prompt's text doesn't depend on the other prompts, the same seed gives the same, another seed another."""
    model, learn = made(objective)
    prompts = ["", "AB", "ABCDEFG"]
    texts = learn.generate(model, Letters(), prompts, sampling())
    assert texts == learn.generate(model, Letters(), prompts, sampling())
    if objective != "objective=diffuseq":  # whose random weights send all noise to the same token
        assert texts != learn.generate(model, Letters(), prompts, sampling(seed=1))
    for prompt, text in zip(prompts, texts):
        assert learn.generate(model, Letters(), [prompt], sampling()) == [text] and len(text) <= 9
    pieces: list[str] = []
    (text,) = learn.generate(model, Letters(), ["AB"], sampling(), pieces.append)
    assert "".join(pieces) == text == texts[1]


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


@pytest.mark.parametrize("block", [1, 2, 4])
@torch.no_grad()
def test_estimates_are_unbiased(block):
    """The mean over many draws is the bound that all ways of masking give, in evaluation and in training."""
    model, _ = made("objective=blocks")
    document = batch(1, length=4)
    options = {"block": block, "length": 4, "weighted": True, "chain_rule": False}
    learn = Blocks(**options, schedule="log_linear", draws=3)
    exact = likelihood_bound(model, document, block)
    draws = [learn.nats(model, document, noise(1, seed=seed)).item() for seed in range(200)]
    spread = torch.tensor(draws).std().item() / math.sqrt(len(draws))
    assert sum(draws) / len(draws) == pytest.approx(exact, abs=4 * spread + 1e-4 * exact)
    if block == 1:
        assert max(draws) == min(draws) == pytest.approx(exact, rel=1e-5)

    rows = Batch(*(x.expand(500, -1) for x in (document.tokens_BT, document.targets_BT)), None, None, PADDING)
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


@every_objective
@torch.no_grad()
def test_the_width_of_a_batch_changes_nothing(objective):
    model, learn = made(objective, *(["objective.block=3"] if objective == "objective=blocks" else []))
    short = batch(1, length=T // 2, given=learn.gives_memory)

    def widened(x_BT: torch.Tensor, fill: int) -> torch.Tensor:
        return F.pad(x_BT, (0, T // 2), value=fill)

    wide = replace(
        short,
        tokens_BT=widened(short.tokens_BT, PADDING),
        targets_BT=widened(short.targets_BT, IGNORED),
        given_BT=None if short.given_BT is None else widened(short.given_BT, False),
    )
    torch.testing.assert_close(
        *(learn.nats(model, rows, noise(1)) for rows in (short, wide)), rtol=1e-5, atol=0
    )


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


def test_a_hole_is_refused_where_it_cannot_be_filled(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["data=reverse", "data.val_pairs=4", *(word for word in TINY if "stories" not in word)]
    train(minllm.compose(["objective=prefix", *words]), tmp_path / "run")
    with pytest.raises(UserError, match="can't fill the hole"):
        generate(minllm.compose(["task=generate", "run=run"]), tmp_path, run="run", prompts=["a ___ b"])
    with pytest.raises(UserError, match="pairs=2 takes the prompts from data"):
        generate(minllm.compose(["task=generate", "run=run"]), tmp_path, run="run", prompts=["a"], pairs=2)
    with pytest.raises(UserError, match="sample.steps=4 would do nothing"):
        generate(
            minllm.compose(["task=generate", "run=run", "sample.steps=4"]), tmp_path, run="run", prompts=["a"]
        )
    cfg = minllm.compose(["task=generate", "run=run", "pairs=2"])
    texts = generate(cfg, tmp_path, run="run", prompts=[""], pairs=2)
    given = [pair.given for pair in itertools.islice(build(cfg.data).pairs("val"), 2)]
    written = "\n\n".join(a + b for a, b in zip(given, texts))
    assert printable(written) in capsys.readouterr().out
    assert (tmp_path / "run/samples.txt").read_text().count(given[0]) == 1


# ---- whole runs ----------------------------------------------------------------------------------


TINY = [
    *("model.dim=16", "model.n_layers=1", "tokenizer=bytes", "data.train_stories=20", "data.val_stories=2"),
    *(
        "data.seq_len=48",
        "train.batch_size=4",
        "train.steps=6",
        "train.checkpoint_every=3",
        "train.check=false",
    ),
    *("sample.max_new_tokens=4", "train.compile=false", "train.precision=fp32", "data.num_proc=1"),
    "schedule=constant",
]


@every_objective
def test_a_run_is_resumed_to_the_bit_and_evaluated_again_alike(objective, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [objective, *NEEDS.get(objective, []), *TINY]
    if objective == "objective=seq2seq":
        words = ["data=reverse", "data.packing=pad", *(word for word in words if "stories" not in word)]
    whole = train(minllm.compose(words), tmp_path / "whole")
    train(minllm.compose([*words, "train.steps=3"]), tmp_path / "run")
    resumed = train(minllm.compose(["resume=run", "train.steps=6"]), tmp_path / "run", resume="run")
    again = evaluate(minllm.compose(["task=evaluate", "run=whole"]), tmp_path, run="whole")
    assert resumed["val_bpb"] == whole["val_bpb"] > whole["floor_bpb"]
    assert again["val_loss"] == whole["best"]["val_loss"]
    assert whole["val_bound"] == build(minllm.compose(words).objective).bound


@pytest.mark.parametrize("word", ["sample.steps=2", "sample.unmask=random", "sample.trace=1"])
def test_options_of_unmasking_are_for_objectives_that_unmask(word):
    build_model(minllm.compose(["objective=masked", word]))
    with pytest.raises(UserError, match="would do nothing"):
        build_model(minllm.compose([word]))


def test_options_of_drawing_tokens_are_not_for_diffuseq():
    with pytest.raises(UserError, match="sample.temperature=0.5 would do nothing"):
        build_model(minllm.compose(["objective=diffuseq", "sample.temperature=0.5"]))


def test_a_prompt_has_one_hole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(minllm.compose(["objective=fim", *TINY, "train.steps=1"]), tmp_path / "run")
    cfg = minllm.compose(["task=generate", "run=run"])
    assert len(generate(cfg, tmp_path, run="run", prompts=["a ___ b"])) == 1
    with pytest.raises(UserError, match="may have one hole, ___, but 'a ___ b ___' has several"):
        generate(cfg, tmp_path, run="run", prompts=["a ___ b ___"])


def test_the_states_of_every_text_are_shown_with_or_without_a_hole(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(minllm.compose(["objective=masked", *TINY, "train.steps=1"]), tmp_path / "run")
    cfg = minllm.compose(["task=generate", "run=run", "sample.trace=1", "sample.steps=2"])
    capsys.readouterr()
    prompts = ["a ___ b", "c"]
    texts = generate(cfg, tmp_path, run="run", prompts=prompts)
    shown = capsys.readouterr().out
    for prompt, text in zip(prompts, texts):
        states, end, shown = shown.partition(printable(filled(prompt, text)) + "\n")
        assert HIDDEN in states and end
    assert texts == generate(
        minllm.compose(["task=generate", "run=run", "sample.steps=2"]), tmp_path, run="run", prompts=prompts
    )


def test_a_given_part_that_leaves_no_room_is_no_prompt(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "data=reverse",
        "data.min_length=12",
        "data.max_length=12",
        "data.val_pairs=4",
        "data.packing=pad",
    ]
    words += [word for word in TINY if "stories" not in word]
    train(minllm.compose(["objective=masked", *words, "data.seq_len=12"]), tmp_path / "run")
    assert (tmp_path / "run/samples.txt").exists()
    capsys.readouterr()
    with pytest.raises(UserError, match="The prompt has 13 tokens"):
        generate(minllm.compose(["task=generate", "run=run"]), tmp_path, run="run", prompts=["a" * 13])
    assert not capsys.readouterr().out
