"""DiffuSeq: its losses against formulas, what is given, and what it writes; test_diffuseq_bound.py has its bound."""

from __future__ import annotations

import itertools
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import minllm
from minllm.data.batches import IGNORED, Batch, open_data
from minllm.errors import UserError
from minllm.generation.candidates import most_similar
from minllm.model.build import build_model
from minllm.model.cost import params
from minllm.model.steps import after_step
from minllm.objective.diffuseq import DiffuSeq
from minllm.objective.embedded import embedded
from minllm.objective.gaussian import Chain
from minllm.objective.importance import HISTORY, UNIFORM, TimeSteps
from minllm.objective.noise import Noise
from minllm.schema.building import build
from minllm.training import checkpoints
from minllm.training import train as task
from tests.diffuseq import LENGTH, OPTIONS, PAD, TINY, VOCAB, model_for, noise, objective


def pairs(*rows: tuple[list[int], list[int]], length: int = LENGTH) -> Batch:
    """Return a batch of (given part, target)."""
    texts = [[1, *given, *target] for given, target in rows]
    tokens_BT = torch.tensor([text[:-1] + [PAD] * (length + 1 - len(text)) for text in texts])
    targets_BT = torch.full_like(tokens_BT, IGNORED)
    given_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    for row, (given, target) in enumerate(rows):
        given_BT[row, : len(given)] = True
        targets_BT[row, len(given) : len(given) + len(target)] = torch.tensor(target)
    return Batch(tokens_BT, targets_BT, None, given_BT, PAD)


TWO = pairs(([3, 4, 5], [6, 7, 2]), ([8], [9, 10, 9, 2]))


# ---- the process ---------------------------------------------------------------------------------


def test_the_schedule_is_one_minus_the_root_of_time():
    chain = Chain(2000)
    t = torch.arange(2000, dtype=torch.float64)
    expected = 1 - (t / 2000 + 1e-4).sqrt()
    torch.testing.assert_close(chain.alpha_bar_L[:-1], expected / expected[0])
    assert 0 < chain.alpha_bar_L[-1] < 1e-6
    assert chain.first_std**2 == pytest.approx(1 - chain.alpha_bar_L[1].item())


def test_weights_of_steps_add_up_to_half_the_signal_that_is_lost():
    chain = Chain(50)
    ratio = chain.alpha_bar_L / chain.variance_L
    torch.testing.assert_close(chain.weight_L[1:].sum(), (ratio[0] - ratio[-1]) / 2)
    assert (chain.weight_L[1:] > 0).all()


def test_noising_in_two_stages_is_noising_in_one():
    """x_t made from x_0 has the mean and variance of x_t made from the embedding."""
    chain, n = Chain(20), 200_000
    clean, t_B = torch.full((n, 1, 1), 0.7), torch.full((n,), 5)
    generator = torch.Generator().manual_seed(0)
    start = clean + chain.first_std * torch.randn(n, 1, 1, generator=generator)
    two = chain.from_start(start, torch.randn(n, 1, 1, generator=generator), t_B)
    one = chain.from_clean(clean, torch.randn(n, 1, 1, generator=generator), t_B)
    torch.testing.assert_close(two.mean(), one.mean(), atol=0.01, rtol=0)
    torch.testing.assert_close(two.var(), one.var(), atol=0, rtol=0.02)
    # the best linear prediction of x_0 from x_t and the embedding is turned back into the embedding
    slope = ((start - clean) * (two - two.mean())).mean() / two.var()
    predicted = clean + slope * (two - chain.alpha_bar_L[5].sqrt().float() * clean)
    torch.testing.assert_close(chain.clean(predicted, two, t_B), clean, atol=0.03, rtol=0)


@pytest.mark.parametrize("ancestral", [True, False])
def test_a_step_back_with_the_right_embedding_gives_less_noise_of_the_right_size(ancestral):
    chain, n, generator = Chain(20), 100_000, torch.Generator().manual_seed(0)
    clean = torch.full((n, 1, 1), 0.7)
    x = chain.from_clean(clean, torch.randn(n, 1, 1, generator=generator), torch.full((n,), 18))
    for t, s in [(18, 9), (9, 8), (8, 0)]:
        x = chain.back(x, clean, torch.randn(n, 1, 1, generator=generator) if ancestral else None, t, s)
        torch.testing.assert_close(x.mean().double(), chain.alpha_bar_L[s].sqrt() * 0.7, atol=0.01, rtol=0)
        torch.testing.assert_close(x.var().double(), chain.variance_L[s], atol=0, rtol=0.02)


# ---- time steps ----------------------------------------------------------------------------------


def test_time_steps_are_uniform_until_each_has_a_history_and_then_by_the_size_of_its_losses():
    times, losses_T = TimeSteps(3), torch.tensor([1.0, 2.0, 5.0])
    for _ in range(HISTORY):
        torch.testing.assert_close(times.probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64))
        t_R, weights_R = times.draw(torch.tensor([0.1, 0.5, 0.9]))
        assert t_R.tolist() == [1, 2, 3] and weights_R.tolist() == pytest.approx([1, 1, 1])
        times.record(losses_T, torch.arange(3))
        times.after_step()
    expected = (1 - UNIFORM) * losses_T / 8 + UNIFORM / 3
    torch.testing.assert_close(times.probabilities().float(), expected)
    t_R, weights_R = times.draw((torch.arange(8000) + 0.5) / 8000)
    torch.testing.assert_close(t_R.bincount()[1:] / 8000, expected, atol=1e-3, rtol=0)
    # weighted, the mean over drawn steps is the mean over all
    assert (weights_R * losses_T[t_R - 1]).mean().item() == pytest.approx(8 / 3, rel=1e-2)


def test_the_history_is_of_the_latest_losses():
    times = TimeSteps(1)
    for loss in range(HISTORY + 3):
        times.draw(torch.tensor([0.5]))
        times.record(torch.tensor([float(loss)]), torch.tensor([0]))
        times.after_step()
    assert sorted(times.history_TH[0].tolist()) == list(range(3, HISTORY + 3))


# ---- the loss ------------------------------------------------------------------------------------


def test_a_model_whose_output_is_zero_has_the_loss_of_the_formula():
    learn = objective(width=6, steps=4)
    model = model_for(learn)
    with torch.no_grad():
        model.parts.down[2].weight.zero_()
    inputs = learn.inputs(TWO, noise(2), model)
    kept = learn.chain.alpha_bar_L
    all_VW, expected = embedded(model, torch.arange(VOCAB)), torch.zeros(())
    for row, text in enumerate([[3, 4, 5, 6, 7, 2, PAD, PAD], [8, 9, 10, 9, 2, PAD, PAD, PAD]]):
        for t in range([3, 1][row], LENGTH):
            clean = all_VW[text[t]]
            start = clean + (1 - kept[1]).sqrt().float() * inputs.start_BTW[row, t]
            target = clean if inputs.t_B[row] == 1 else start
            expected = expected + target.square().mean() + kept[-1].float() * start.square().mean()
            expected = expected + F.cross_entropy(all_VW @ start, torch.tensor(text[t]))
    torch.testing.assert_close(learn.loss(model, inputs), expected)


def test_every_parameter_has_a_gradient_and_counts():
    learn = objective()
    model = model_for(learn)
    learn.loss(model.train(), learn.inputs(TWO, noise(2), model)).backward()
    assert all(param.grad is not None and param.grad.any() for param in model.parameters())
    own = sum(param.numel() for param in model.parts.parameters())
    assert own > 0 and params(model) == own + params(model_without_parts())


def model_without_parts():
    words = [word for word in TINY if not word.startswith(("objective", "sample.steps"))]
    cfg = minllm.compose([*words, "objective=causal"])
    return build_model(cfg, SimpleNamespace(vocab_size=VOCAB))


def test_an_embedded_input_replaces_the_lookup_and_nothing_else():
    model, tokens_BT = model_without_parts(), torch.randint(0, VOCAB, (2, 5))
    looked_up = model.hidden(
        torch.zeros_like(tokens_BT), embedded_BTD=model.lookup(tokens_BT, model.embedding)
    )
    assert torch.equal(looked_up, model.hidden(tokens_BT))


class Spy(DiffuSeq):
    """Notes what the model reads, and may predict nonsense for some tokens."""

    nonsense_BT1: torch.Tensor | None = None

    def predict(self, model, x_BTW, t_B, losses=None):
        self.read_BTW = x_BTW.detach()
        predicted_BTW = super().predict(model, x_BTW, t_B, losses)
        return predicted_BTW if self.nonsense_BT1 is None else predicted_BTW + 1e3 * self.nonsense_BT1


def test_the_given_part_is_neither_noised_nor_counted_and_padding_is_both():
    learn, given_BT = Spy(**OPTIONS), TWO.given_BT
    model = model_for(learn)
    clean_BTW = embedded(model, TWO.text_BT)
    inputs = learn.inputs(TWO, noise(2), model)
    loss, nats_B = learn.loss(model, inputs), learn.nats(model, TWO, noise(2))
    assert torch.equal(learn.read_BTW[given_BT], clean_BTW[given_BT])
    assert (learn.read_BTW[~given_BT] != clean_BTW[~given_BT]).all(), "targets and padding are noised"

    learn.nonsense_BT1 = given_BT[:, :, None].float()
    assert torch.equal(learn.loss(model, inputs), loss)
    assert torch.equal(learn.nats(model, TWO, noise(2)), nats_B)
    for place in [(0, 3), (0, LENGTH - 1)]:  # a target and padding
        learn.nonsense_BT1 = torch.zeros(2, LENGTH, 1)
        learn.nonsense_BT1[place] = 1
        assert learn.loss(model, inputs) > loss + 1
        assert (learn.nats(model, TWO, noise(2)) > nats_B + 1).tolist() == [True, False]


def test_evaluation_counts_whole_documents_of_which_training_gives_a_beginning():
    learn = objective(split=1.0)
    model = model_for(learn)
    row = torch.tensor([[1, 3, 4, 5, 6, 7, 8, 9]]).repeat(200, 1)
    whole = Batch(row, torch.cat([row[:, 1:], torch.full((200, 1), 2)], 1), None, None, PAD)
    open_BT = learn.inputs(whole, noise(200), model).open_BT
    given_B = (~open_BT).sum(1)
    assert set(given_B.tolist()) == set(range(LENGTH)), "from none to all but one token"
    assert torch.equal(open_BT, torch.arange(LENGTH) >= given_B[:, None])
    assert objective(split=0.0).inputs(whole, noise(200), model).open_BT.all()
    spy = Spy(**OPTIONS)
    spy.nats(model, whole, noise(200))
    assert (spy.read_BTW != embedded(model, whole.text_BT)).all(), "nothing is given in evaluation"


# ---- reproducible noise --------------------------------------------------------------------------


def test_rows_have_the_same_noise_in_whichever_part_of_the_batch_they_are():
    learn, batch = objective(), pairs(*[([3, i], [4, 5, 2]) for i in range(6)])
    model = model_for(learn)
    whole = learn.inputs(batch, noise(6), model)
    part = learn.inputs(batch.rows(slice(2, 5)), Noise(0, 0, range(2, 5), 6), model)
    for name in ("t_B", "weights_B", "start_BTW", "noise_BTW", "open_BT"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[2:5]), name
    assert not torch.equal(learn.inputs(batch, noise(6, step=1), model).noise_BTW, whole.noise_BTW)


def test_micro_batches_change_neither_the_gradient_nor_the_history():
    batch = pairs(*[([3, i], [4, 5, 2]) for i in range(6)])
    found = []
    for size in (6, 2):
        learn = objective(steps=2, draws=2)
        model = model_for(learn).train()
        for step in range(2 * HISTORY):
            inputs = learn.inputs(batch, noise(6, step=step), model)
            for start in range(0, 6, size):
                learn.loss(model, inputs.rows(slice(start, start + size))).backward()
            after_step(model)
        found.append((inputs.t_B, model.parts.times.history_TH, model.parts.up[0].weight.grad))
    (t_B, history_TH, grad), (t_of_parts_B, history_of_parts_TH, grad_of_parts) = found
    assert torch.equal(t_B, t_of_parts_B)
    assert history_TH.all() and model.parts.times.probabilities().std() > 0
    torch.testing.assert_close(history_TH, history_of_parts_TH)
    torch.testing.assert_close(grad, grad_of_parts, rtol=1e-4, atol=1e-4)


def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = [
        "objective.steps=3",
        "objective.draws=2",
        "train.steps=12",
        "train.checkpoint_every=8",
        f"data.cache={tmp_path}/stores",
    ]
    cfg = minllm.compose([*TINY, *more])
    task.train(cfg, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-000012")
    (tmp_path / "cut/summary.json").unlink()
    task.train(cfg, tmp_path / "cut", resume=tmp_path / "cut")
    weights = "checkpoints/step-000012/model.safetensors"
    assert (tmp_path / "cut" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    model, _, _ = checkpoints.load(tmp_path / "cut", which="last")
    assert model.parts.times.seen_T.sum() == 12 * 8
    assert model.parts.times.seen_T.min() >= HISTORY, "the history decides before and after"


# ---- writing -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A model that has learnt to reverse strings a little."""
    cfg = minllm.compose([*TINY, "train.batch_size=32", f"data.cache={tmp_path_factory.mktemp('stores')}"])
    cfg.typed = []
    tokenizer = build(cfg.tokenizer)
    learn, model = build(cfg.objective), build_model(cfg, tokenizer).train()
    batches = open_data(build(cfg.data), tokenizer).train(32, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 300)
        batch = batches.batch(step)
        loss = learn.loss(model, learn.inputs(batch, noise(32, step=step), model))
        optimizer.zero_grad()
        (loss / (batch.targets_BT != IGNORED).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after_step(model)
    return cfg, learn, model, tokenizer


def write(learnt, prompts, *, stream=None, **options):
    cfg, learn, model, tokenizer = learnt
    return minllm.generate(model, tokenizer, prompts, objective=learn, stream=stream, **options)


def test_it_learns_to_reverse(learnt):
    given = [text for text in ("".join(letters) for letters in itertools.product("abcd", repeat=2))]
    written = write(learnt, [f"{text}:" for text in given], steps=8)
    exact = sum(text == string[::-1] for text, string in zip(written, given))
    assert exact >= 8, f"{exact} of 16: by chance it would be one"


@pytest.mark.parametrize("ancestral", [True, False])
def test_each_text_depends_on_its_prompt_and_seed_alone(learnt, ancestral, monkeypatch):
    monkeypatch.setattr(learnt[1], "ancestral", ancestral)
    together = write(learnt, ["ab:", "", "cad:"], steps=3, candidates=2)
    assert together == [write(learnt, [prompt], steps=3, candidates=2)[0] for prompt in ("ab:", "", "cad:")]
    assert together[1] != write(learnt, [""], steps=3, candidates=2, seed=1)[0] or not ancestral


def test_the_given_part_is_kept_in_all_states(learnt):
    states = []
    text = write(learnt, ["abc:"], steps=5, trace=1, stream=states.append)[0]
    assert len(states) == 6 and all(state.startswith("abc:") for state in states)
    assert states[-1] == f"abc:{text}" and states[-2] == f"abc:{text}\n"
    assert write(learnt, ["abc:"], steps=5, max_new_tokens=1)[0] == text[:1]


def test_a_prompt_that_leaves_no_room_is_refused(learnt):
    with pytest.raises(UserError, match=r"8 tokens, and the model generates texts of at most 8"):
        write(learnt, ["abcdefg:"])


def test_the_candidate_most_similar_to_the_others_is_chosen():
    texts = [
        "a dog ran home",
        "the cat sat on the mat",
        "the cat sat on a mat",
        "the cat sat on the mat today",
    ]
    assert most_similar(texts) == 1
    assert most_similar(["one"]) == 0
    assert most_similar(["x", "y", "y"]) == 1


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UserError, match=r"data\.packing=pad"):
        objective().check(SimpleNamespace(packing="pack"))
    with pytest.raises(UserError, match=r"objective\.draws=30 is more than objective\.steps=20"):
        objective(draws=30)
    with pytest.raises(UserError, match="reads from left to right only"):
        build_model(minllm.compose([*TINY[:4], "model/rec=mamba2", "model.layout=[rec mlp]"]))
