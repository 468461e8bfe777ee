"""Whole recurrent mixers: long texts, compilation, and first values as published."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import VOCAB, options, tiny_model

every_mixer = pytest.mark.parametrize("choice", options("model/rec"))

ALONE = "model/layout=mamba"
"""Layers of a mixer and nothing else."""


@every_mixer
def test_five_hundred_steps_of_decoding_are_the_whole(choice):
    model = tiny_model(choice, ALONE, randomised=True)
    batch = torch.randint(VOCAB, (2, 520))
    with torch.no_grad():
        state = model.init_state(2, 520)
        steps = [model(batch[:, :20], state=state)]
        steps += [model(batch[:, t : t + 1], state=state) for t in range(20, 520)]
        whole = model(batch)
    assert (torch.cat(steps, dim=1) - whole).abs().max() < 1e-4 * max(1.0, whole.abs().max())


@every_mixer
def test_the_state_is_as_large_after_a_long_text_as_after_a_short_one(choice):
    model = tiny_model(choice)
    sizes = set()
    with torch.no_grad():
        for length in (64, 640):
            state = model.init_state(1, length)
            model(torch.randint(VOCAB, (1, length)), state=state)
            sizes.add(state.nbytes)
    assert len(sizes) == 1


@every_mixer
def test_the_compiler_sees_one_graph_that_is_the_same(choice):
    """Results and gradients, with segments too: a scan is a single operation, or a few for each chunk.

    The graph is run as it is: what C++ is made of it isn't ours, and takes a minute for each.
    """
    torch._dynamo.reset()
    model = tiny_model(choice, ALONE, randomised=True, n_layers=1)
    batch = torch.randint(VOCAB, (2, 13))  # two chunks and a part of one
    packed = torch.tensor([[0] * 4 + [1] * 9] * 2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for given in (None, packed):
        results = []
        for run in (compiled, model):
            logits = run(batch, given)
            grads = torch.autograd.grad(logits.square().mean(), list(model.parameters()))
            results.append([logits, *grads])
        for one, other in zip(*results):
            assert (one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max())


# ---- first values, as published ------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["mamba", "mamba2"])
def test_mambas_steps_begin_between_a_thousandth_and_a_tenth(choice):
    rec = tiny_model(f"model/rec={choice}", "model.dim=512").layers[0]["rec"].words["rec"]
    steps = F.softplus(rec.dt_bias_F if choice == "mamba" else rec.dt_bias_H)
    assert steps.min() >= 0.001 and steps.max() <= 0.1
    # evenly by their logarithm: about as many below a hundredth as above it
    assert 0.25 <= (steps < 0.01).float().mean() <= 0.75


def test_mambas_decays_begin_as_one_to_n():
    rec = tiny_model("model/rec=mamba").layers[0]["rec"].words["rec"]
    torch.testing.assert_close(rec.log_A_FN.exp(), torch.arange(1.0, 4).expand(64, 3))


def test_a_full_gate_of_the_rglru_decays_by_little_at_first():
    rec = tiny_model("model/rec=rglru").layers[0]["rec"].words["rec"]
    decay = torch.exp(-8 * F.softplus(rec.decay_F))
    assert decay.min() >= 0.9 and decay.max() <= 0.999
