"""Whole recurrent mixers: long texts, compilation, and first values as published."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minllm.model.context import Context
from minllm.model.stack import positions_in
from tests.tiny import VOCAB, options, tiny_model, tokens

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
def test_the_compiler_sees_one_graph_of_a_mixer_that_is_the_same(choice):
    """With segments too: a scan is a single operation, or a few for all chunks."""
    model = tiny_model(choice, ALONE, randomised=True, n_layers=1)
    x_BTD = torch.randn(2, T, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def arguments(segments_BT):
        positions_BT = positions_in(T, segments_BT, x_BTD.device)
        return x_BTD, Context(positions_BT, positions_BT, model.position, segments_BT, segments_BT)

    hold_to_one_graph(model.layers[0]["rec"].words["rec"], arguments, x_BTD)


def test_the_compiler_sees_one_graph_of_a_model_that_is_the_same():
    model = tiny_model("model/rec=min_gru", ALONE, randomised=True, n_layers=1)
    batch = tokens(2, T)
    hold_to_one_graph(model, lambda segments_BT: (batch, segments_BT))


T = 18
"""Three chunks of five tokens, or one of the sixteen of a moving average, and a part of one."""


def hold_to_one_graph(module, arguments, *inputs):
    """Compare the results and gradients of a module and of the graph that the compiler sees, with and without segments.

    The graph is run as it is: what C++ is made of it isn't ours, and takes a minute for each.
    """
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for segments_BT in (None, torch.tensor([[0] * 4 + [1] * (T - 4)] * 2)):
        results = []
        for run in (compiled, module):
            y = run(*arguments(segments_BT))
            grads = torch.autograd.grad(y.square().mean(), [*module.parameters(), *inputs])
            results.append([y, *grads])
        for one, other in zip(*results, strict=True):
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
