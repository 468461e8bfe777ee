"""What every objective must prove: each YAML of conf/objective is held to it at a tiny size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

import minllm
from minllm.data.batches import IGNORED, Rows
from minllm.errors import UserError, printable
from minllm.generation.unmask import HIDDEN
from minllm.model.build import build_model
from minllm.model.context import PAD, Sight
from minllm.objective.blocks import Blocks, Canvas
from minllm.objective.noise import Noise
from minllm.schema.building import build
from minllm.tasks.evaluate import evaluate
from minllm.tasks.generate import filled, generate
from minllm.training.train import train
from tests.objectives import ENCODER, NEEDS, PADDING, Letters, batch, made, made_anew, noise, sampling
from tests.tiny import VOCAB, T, options, random_model, tiny_cfg, tokens, unjudged

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
    model, learn = made_anew(objective)
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
    model, learn = made_anew(objective)
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


# ---- whole runs ----------------------------------------------------------------------------------


TINY = [
    *("model.dim=16", "model.n_layers=1", "tokenizer=bytes", "data.train_stories=20", "data.val_stories=1"),
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
PAIRS = ["data=reverse", "data.train_pairs=40"]
CHEAP = {"draws": 2, "width": 16}
"""What costs time in an evaluation: how often a row is noised, and how wide the noise is."""


@every_objective
def test_a_run_is_resumed_to_the_bit_and_evaluated_again_alike(objective, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options_of_it = tiny_cfg(objective).objective
    cheap = [f"objective.{name}={value}" for name, value in CHEAP.items() if name in options_of_it]
    words = [objective, *NEEDS.get(objective, []), *TINY, *cheap]
    if objective == "objective=seq2seq":
        words = [
            *PAIRS,
            "data.packing=pad",
            "data.val_pairs=20",
            *(word for word in words if "stories" not in word),
        ]
    cfg = unjudged(*words)
    whole = train(cfg, tmp_path / "whole")
    train(OmegaConf.merge(cfg, {"train": {"steps": 3}}), tmp_path / "run")
    resumed = train(minllm.compose(["resume=run", "train.steps=6"]), tmp_path / "run", resume="run")
    again = evaluate(minllm.compose(["task=evaluate", "run=whole"]), tmp_path, run="whole")
    assert resumed["val_bpb"] == whole["val_bpb"] > whole["floor_bpb"]
    assert again["val_loss"] == whole["best"]["val_loss"]
    assert whole["val_bound"] == build(cfg.objective).bound


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
    train(unjudged("objective=fim", *TINY, "train.steps=1"), tmp_path / "run")
    cfg = minllm.compose(["task=generate", "run=run"])
    assert len(generate(cfg, tmp_path, run="run", prompts=["a ___ b"])) == 1
    with pytest.raises(UserError, match="may have one hole, ___, but 'a ___ b ___' has several"):
        generate(cfg, tmp_path, run="run", prompts=["a ___ b ___"])


def test_a_hole_is_refused_where_it_cannot_be_filled(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*PAIRS, "data.val_pairs=4", *(word for word in TINY if "stories" not in word)]
    train(unjudged("objective=prefix", *words), tmp_path / "run")
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


def test_the_states_of_every_text_are_shown_with_or_without_a_hole(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(unjudged("objective=masked", *TINY, "train.steps=1"), tmp_path / "run")
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
        *PAIRS,
        "data.min_length=12",
        "data.max_length=12",
        "data.val_pairs=4",
        "data.packing=pad",
    ]
    words += [word for word in TINY if "stories" not in word]
    train(unjudged("objective=masked", *words, "data.seq_len=12"), tmp_path / "run")
    assert (tmp_path / "run/samples.txt").exists()
    capsys.readouterr()
    with pytest.raises(UserError, match="The prompt has 13 tokens"):
        generate(minllm.compose(["task=generate", "run=run"]), tmp_path, run="run", prompts=["a" * 13])
    assert not capsys.readouterr().out
