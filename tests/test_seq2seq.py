"""Sequence to sequence and span corruption: what is read, what is predicted, what it costs, and what is written."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import minllm
from minllm.config.compose import compose, perform
from minllm.data.batches import IGNORED, Batch, open_data
from minllm.errors import UserError
from minllm.generation.sampler import Sampling
from minllm.model.build import build_model, build_shapes
from minllm.model.context import PAD
from minllm.model.lm import LM
from minllm.objective import HOLE
from minllm.objective.noise import Noise
from minllm.objective.prefix import begins
from minllm.objective.seq2seq import Seq2Seq
from minllm.objective.span import Span, spans
from minllm.schema.building import build
from minllm.sweep.prediction import predicted_peak
from minllm.tokenizer.bytes import Bytes
from tests.tiny import VOCAB, unjudged

ENCODER = ["model/encoder=same", "model/layout=decoder", "model.dim=32", "model.n_layers=2"]
EOS, BOS, T = VOCAB - 2, VOCAB - 1, 32
SENTINELS = 8
NOISE = Noise(0, 0, range(2), 2)
GREEDY = dict(temperature=0.0, max_new_tokens=8)
both = pytest.mark.parametrize("name", ["seq2seq", "span"])


def objective(name: str, to_end: float = 0.0) -> Seq2Seq | Span:
    if name == "seq2seq":
        return Seq2Seq()
    return Span(density=0.4, mean_span=2.0, to_end=to_end, sentinels=SENTINELS, length=T)


@functools.cache
def random_model(name: str, *choices: str) -> LM:
    """Return a model with random weights in float64, which tests share: nobody changes it."""
    words = [] if name == "seq2seq" else ["data.packing=pack", f"objective.sentinels={SENTINELS}"]
    cfg = compose([f"objective={name}", *ENCODER, f"data.seq_len={T}", *words, *choices])
    model = build_model(cfg, SimpleNamespace(vocab_size=VOCAB))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.2 + (param.ndim == 1) * 0.5)
    return model.double().eval()


PAIRS = [([1, 2, 3], [11, 12]), ([4, 5, 6, 7, 8, 9], [13, 14, 15, 16]), ([], [17, 18, 19])]


def batch_of(rows: list[list[tuple[list[int], list[int]]]], width: int = T, *, given: bool = True) -> Batch:
    """Return a batch whose rows have these pairs; without segments if each has one."""
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    targets, segments = torch.full_like(tokens, IGNORED), torch.full_like(tokens, PAD)
    given_BT = torch.zeros_like(tokens, dtype=torch.bool)
    for row, pairs in enumerate(rows):
        at = 0
        for segment, (source, target) in enumerate(pairs):
            text = torch.tensor([BOS, *source, *target, EOS])
            end, cut = at + len(text) - 1, at + len(source)
            tokens[row, at:end], targets[row, at:end], segments[row, at:end] = text[:-1], text[1:], segment
            given_BT[row, at:cut] = True
            at = end
    targets[given_BT] = IGNORED
    packed = any(len(pairs) > 1 for pairs in rows)
    return Batch(tokens, targets, segments if packed else None, given_BT if given else None, 0, BOS, EOS)


PACKED, ALONE = batch_of([PAIRS]), batch_of([[pair] for pair in PAIRS])


def nats(name: str, batch: Batch, model: LM | None = None) -> Tensor:
    with torch.no_grad():
        return objective(name).nats(model or random_model(name), batch, NOISE)


# ---- what is read and predicted ------------------------------------------------------------------


def test_given_parts_become_the_source():
    inputs = Seq2Seq().inputs(PACKED, NOISE, None)
    assert inputs.source_BS[0, :12].tolist() == [1, 2, 3, EOS, 4, 5, 6, 7, 8, 9, EOS, EOS]
    assert inputs.source_segments_BS[0, :13].tolist() == [0] * 4 + [1] * 7 + [2, PAD]
    assert inputs.tokens_BS[0, :12].tolist() == [BOS, 11, 12, BOS, 13, 14, 15, 16, BOS, 17, 18, 19]
    assert inputs.targets_BT[0, :12].tolist() == [11, 12, EOS, 13, 14, 15, 16, EOS, 17, 18, 19, EOS]
    assert inputs.segments_BS[0, :13].tolist() == [0] * 3 + [1] * 5 + [2] * 4 + [PAD]
    assert (inputs.targets_BT[0, 12:] == IGNORED).all()


def test_no_given_token_is_predicted_in_a_real_corpus():
    words = ["data=reverse", "data.train_pairs=60", "data.val_pairs=9", "tokenizer=bytes"]
    for packing in ("pad", "pack"):
        cfg = compose(["objective=seq2seq", *ENCODER, *words, f"data.packing={packing}"])
        corpus = open_data(build(cfg.data), Bytes())
        for batch in [corpus.train(8, seed=0).batch(0), *corpus.validation(4)]:
            inputs = Seq2Seq().inputs(batch, NOISE, None)
            assert ord(":") not in inputs.targets_BT
            counted = int((batch.targets_BT != IGNORED).sum())
            assert (inputs.targets_BT != IGNORED).sum() == counted == Seq2Seq().counted(batch, inputs)
            ends = (inputs.source_BS == Bytes.eos_id) & (inputs.source_segments_BS != PAD)
            assert (
                ends.sum()
                == (inputs.source_BS == ord(":")).sum()
                == (inputs.targets_BT == Bytes.eos_id).sum()
            )


def text_of(inputs, segment: int) -> tuple[list[int], list[int]]:
    source = inputs.source_BS[0, inputs.source_segments_BS[0] == segment].tolist()
    return source, inputs.targets_BT[0, inputs.segments_BS[0] == segment].tolist()


def test_spans_are_cut_out_as_in_t5():
    """Put back where their sentinels are, they give the document; targets are read one token later."""
    documents = [([], [*range(1, 12)]), ([], [*range(20, 27)]), ([], [30])]
    batch = batch_of([documents, documents], given=False)
    model = SimpleNamespace(vocab_size=VOCAB + SENTINELS)
    inputs = objective("span").inputs(batch, NOISE, model)
    for segment, (_, document) in enumerate(documents):
        source, target = text_of(inputs, segment)
        assert source[-1] == target[-1] == EOS
        marks = [token for token in source if token >= VOCAB]
        assert marks == [token for token in target if token >= VOCAB] == [*range(VOCAB, VOCAB + len(marks))]
        parts = {m: target[target.index(m) + 1 :] for m in marks}
        filled = []
        for token in source[:-1]:
            ends = (token > VOCAB - 1) and next(
                i for i, x in enumerate(parts[token]) if x >= VOCAB or x == EOS
            )
            filled += parts[token][:ends] if token >= VOCAB else [token]
        assert filled == document
        read = inputs.tokens_BS[0, inputs.segments_BS[0] == segment].tolist()
        assert read == [BOS, *target[:-1]]
    assert len([token for token in text_of(inputs, 0)[1] if token < EOS]) == round(0.4 * 11)
    assert text_of(inputs, 2) == ([VOCAB, EOS], [VOCAB, 30, EOS])
    assert objective("span").counted(batch, inputs) == (inputs.targets_BT != IGNORED).sum()


def test_all_divisions_into_spans_are_equally_likely():
    """Seven tokens, three of them in two spans: two divisions of those times three of the others."""
    rows = 3000
    batch = batch_of([[([], [*range(1, 8)])]] * rows, given=False)
    text = (batch.targets_BT != IGNORED) & (batch.targets_BT != EOS)
    noise = Noise(0, 0, range(rows), rows)
    drawn = Counter(map(tuple, spans(text, begins(batch), noise, 0.4, 2.0, 0.0)[:, :7].int().tolist()))
    assert len(drawn) == 6 and all(430 < count < 570 for count in drawn.values())
    to_end = spans(text, begins(batch), noise, 0.4, 2.0, 1.0)
    assert not to_end[~text].any() and to_end[:, 6].all()
    assert (to_end[:, :7].int().diff(dim=1) >= 0).all()
    assert set(to_end.sum(1).tolist()) == {*range(1, 8)}


def test_the_random_numbers_of_a_row_are_its_own():
    batch, model = batch_of([[([], [*range(1, 12)])]] * 4, given=False), SimpleNamespace(vocab_size=99)
    whole = objective("span").inputs(batch, Noise(5, 7, range(4), 4), model)
    assert len({tuple(row) for row in whole.source_BS.tolist()}) > 1
    part = objective("span").inputs(batch.rows(slice(2, 4)), Noise(5, 7, range(2, 4), 4), model)
    for name in ("source_BS", "tokens_BS", "targets_BT", "source_segments_BS"):
        assert torch.equal(getattr(whole, name)[2:], getattr(part, name))


# ---- what it costs -------------------------------------------------------------------------------


@both
def test_an_output_of_zero_costs_ln_v_for_each_target(name):
    model = copy.deepcopy(random_model(name))
    for param in model.parameters():
        param.data.zero_()
    counted = [3, 5, 4]
    assert nats(name, ALONE, model).tolist() == pytest.approx([n * math.log(VOCAB) for n in counted])
    inputs = objective(name).inputs(ALONE, Noise(0, 0, range(3), 3), model)
    sentinels = 0 if name == "seq2seq" else SENTINELS
    n = objective(name).counted(ALONE, inputs)
    assert objective(name).loss(model, inputs).item() == pytest.approx(n * math.log(VOCAB + sentinels))


@both
def test_packing_padding_and_batches_change_nothing(name):
    alone = nats(name, ALONE)
    assert nats(name, PACKED).item() == pytest.approx(alone.sum().item(), rel=1e-6)
    by_row = [nats(name, batch_of([[pair]], width=13)).item() for pair in PAIRS]
    assert by_row == pytest.approx(alone.tolist(), rel=1e-6)
    assert alone.min() > 1


@both
def test_micro_batches_add_up(name):
    model = random_model(name)
    inputs = objective(name).inputs(ALONE, Noise(0, 0, range(3), 3), model)
    whole = objective(name).loss(model, inputs).item()
    parts = [objective(name).loss(model, inputs.rows(slice(i, i + 1))).item() for i in range(3)]
    assert sum(parts) == pytest.approx(whole, rel=1e-6)


@both
def test_a_document_reads_its_own_memory_only(name):
    """Changing the given part of one pair changes its own loss, and not that of its neighbours in the row."""
    changed = batch_of([[PAIRS[0], ([4, 5, 6, 40, 8, 9], PAIRS[1][1]), PAIRS[2]]])
    model, losses = random_model(name), []
    for batch in (PACKED, changed):
        x_ND, targets_N = objective(name).predictions(model, batch)
        losses.append(torch.nn.functional.cross_entropy(model.logits(x_ND), targets_N, reduction="none"))
    before, after = losses
    assert torch.equal(before[:3], after[:3]) and torch.equal(before[8:], after[8:])
    assert (before[3:8] != after[3:8]).all()


@both
def test_likelihoods_add_up_to_one(name):
    """Over all targets that end, and all beginnings of longer ones."""
    model, total = copy.deepcopy(random_model(name)), 0.0
    few, sentinels = [3, EOS], model.vocab_size - VOCAB
    kept = torch.tensor([*few, *range(VOCAB, VOCAB + sentinels)])  # others can't be written
    bias = torch.full((model.vocab_size,), -torch.inf, dtype=torch.float64)
    bias[kept] = 0
    model.head_bias_V = torch.nn.Parameter(bias)
    for length, ends in [(0, True), (1, True), (2, False)]:
        for target in itertools.product(few[:1], repeat=length):
            batch = batch_of([[([1, 2], [*target])]])
            if not ends:
                batch.targets_BT[batch.targets_BT == EOS] = IGNORED
            total += nats(name, batch, model).neg().exp().item()
    assert total == pytest.approx(1, abs=1e-6)


def test_auxiliary_losses_of_the_encoder_count():
    words = ["+model/mlp@model.encoder.mlp=moe", "model.encoder.mlp.router.balance=0.5"]
    model = copy.deepcopy(random_model("seq2seq", *words))
    inputs = Seq2Seq().inputs(ALONE, NOISE, model)
    evaluated, trained = Seq2Seq().loss(model, inputs).item(), Seq2Seq().loss(model.train(), inputs)
    assert trained.item() > evaluated + 0.1
    trained.backward()
    assert model.encoder.layers[0]["mlp"].words["mlp"].router.score.weight.grad.any()


# ---- writing -------------------------------------------------------------------------------------


@functools.cache
def writer(name: str) -> LM:
    words = [f"objective.sentinels={SENTINELS}", "data.packing=pack"] * (name == "span")
    cfg = compose([f"objective={name}", *ENCODER, *words, "tokenizer=bytes", f"data.seq_len={T}"])
    model = build_model(cfg, Bytes())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.3 + (param.ndim == 1) * 0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "prompts"),
    [("seq2seq", ["abc:", "", "a longer text:"]), ("span", ["abc", "", f"once{HOLE} a time", f"{HOLE}!"])],
)
def test_what_is_written_is_the_most_likely_target(name, prompts):
    """Token by token, as teacher forcing has it; alone and with other prompts, also with an empty given part."""
    model, tokenizer = writer(name), Bytes()
    sampling = Sampling(top_k=None, top_p=1.0, min_p=0.0, seed=0, **GREEDY)
    written = minllm.generate(model, tokenizer, prompts, objective=objective(name), **GREEDY)
    assert len(set(written)) > 1
    for prompt, text in zip(prompts, written):
        assert objective(name).generate(model, tokenizer, [prompt], sampling) == [text]
        before, hole, after = prompt.partition(HOLE)
        sentinel = [model.vocab_size - SENTINELS] if name == "span" else []
        source = [*tokenizer.encode(before), *sentinel, *tokenizer.encode(after), tokenizer.eos_id]
        row = [tokenizer.bos_id, *sentinel]
        for _ in range(GREEDY["max_new_tokens"]):
            logits = model(torch.tensor([row]), source_BS=torch.tensor([source]))[
                0, -1, : tokenizer.vocab_size
            ]
            row.append(int(logits.argmax()))
            if row[-1] == tokenizer.eos_id:
                row.pop()
                break
        assert tokenizer.decode(row[1 + len(sentinel) :]) == text


# ---- in runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seq2seq", "span"])
def test_a_run_learns_and_is_read(name, tmp_path):
    from minllm.study.reading import read_text, windows_of
    from minllm.training import checkpoints

    words = [f"objective={name}", *ENCODER, "data=reverse", "tokenizer=bytes", "data.train_pairs=99"]
    words += [
        "data.val_pairs=20",
        "train.steps=12",
        "train.eval_every=6",
        "train.compile=false",
        "optim.lr=1e-2",
    ]
    summary = perform(compose([*words, "sample.max_new_tokens=4", "train.precision=fp32"]), tmp_path / "run")
    assert summary["val_bound"] == "exact" and summary["val_loss"] < 4.5 < math.log(257)
    model, tokenizer, cfg = checkpoints.load(tmp_path / "run")
    evaluated = perform(compose(["task=evaluate", f"run={tmp_path / 'run'}"]), tmp_path / "none")
    assert evaluated["val_bpb"] == pytest.approx(summary["val_bpb"], rel=1e-4)
    learnt, source = build(cfg.objective), build(cfg.data)
    pair = next(iter(source.pairs("val")))
    guesses = read_text(model, learnt, tokenizer, source, pair)
    assert "".join(guess.text for guess in guesses) == pair.target
    (batch,) = windows_of(tokenizer, source, pair)
    exact = learnt.nats(model, batch, NOISE).item()
    assert sum(guess.nats for guess in guesses) == pytest.approx(exact, rel=1e-4)


@both
def test_memory_is_predicted(name):
    # one layer each of the encoder and the decoder
    words = ["data=reverse", "tokenizer=bytes", "data.seq_len=40", "model.n_layers=1"]
    cfg = unjudged(f"objective={name}", *ENCODER, *words)
    few, many = (predicted_peak(cfg, rows, precision="fp32") for rows in (1, 8))
    assert few < many


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("objective=seq2seq data=tales", "learns from pairs.*data=pairs, data=reverse or data=tales_pairs"),
        ("objective=seq2seq data=reverse data.packing=concat", "add data.packing=pack or data.packing=pad"),
        ("objective=span data.packing=concat", "add data.packing=pack or data.packing=pad"),
        ("objective=seq2seq data=reverse data.seq_len=12", "longer than data.seq_len=12.*to 22 or more"),
        (
            "objective=span data.packing=pad objective.sentinels=3",
            "has up to 13 spans.*objective.sentinels=13",
        ),
    ],
)
def test_what_it_cannot_learn_from(words, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        perform(compose([*words.split(), *ENCODER, "tokenizer=bytes"]), tmp_path)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("model/layout=decoder", r"needs a model with an encoder: add model/encoder=same\."),
        ("", r"add model/encoder=same model/layout=decoder\."),
    ],
)
@both
def test_models_without_an_encoder_are_rejected(name, words, complaint):
    with pytest.raises(UserError, match=f"objective={name} {complaint}" if words else complaint):
        build_shapes(compose([f"objective={name}", *words.split()]), VOCAB)


def test_spans_need_positions_for_sentinels():
    words = ["objective=span", *ENCODER, "model/pos=learned", "data.seq_len=64"]
    with pytest.raises(UserError, match=r"needs 66 positions.*has 64: set model.pos.max_len=66\."):
        build_shapes(compose(words), VOCAB)
    build_shapes(compose([*words, "model.pos.max_len=66"]), VOCAB)


def test_a_window_without_its_given_part_is_rejected():
    batch = batch_of([[PAIRS[1]]])
    later = Batch(
        *(x.roll(-2, dims=1) for x in (batch.tokens_BT, batch.targets_BT)),
        None,
        batch.given_BT.roll(-2, 1),
        0,
        BOS,
    )
    with pytest.raises(UserError, match="A pair is longer than data.seq_len=32"):
        Seq2Seq().inputs(later, NOISE, None)
