"""The bound of DiffuSeq against quadrature and against the entropy of a language, and its evaluation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import minllm
from minllm.data.batches import Batch, open_data
from minllm.model.build import build_model
from minllm.objective.diffuseq import DiffuSeq
from minllm.objective.embedded import embedded
from minllm.schema.building import build
from minllm.training.evaluation import evaluate
from tests.diffuseq import LENGTH, PAD, TINY, VOCAB, model_for, noise, objective

POINTS = torch.linspace(-7, 7, 1001, dtype=torch.float64)
PLACES = [-1.2, 0.3, 1.5]
"""The embeddings of three tokens in one dimension."""


class Fixed(DiffuSeq):
    """A model of one token in one dimension that predicts a function of x and t."""

    def predict(self, model, x_BTW, t_B, losses=None):
        return 1.3 * torch.tanh(1.1 * x_BTW + 0.2) - 0.1 * t_B.view(-1, 1, 1)


def on_a_line(learn: DiffuSeq):
    """Return a model whose tokens are embedded at PLACES, with a different head, so that rounding isn't trivial."""
    model = model_for(learn, len(PLACES), "model.tie_embeddings=false", "model.head_bias=true")
    with torch.no_grad():
        model.embedding.zero_()[:, 0] = torch.tensor(PLACES) / 50
        model.parts.project.weight.zero_()[:, 0] = 1
        model.head.weight.zero_()[:, 0] = torch.tensor([-0.06, 0.0, 0.05])
        model.head_bias_V.copy_(torch.tensor([0.3, -0.2, 0.1]))
    return model


def density(mean, variance):
    return torch.exp(-((POINTS - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5


def rounding_P3(model):
    logits_P3 = 50 * POINTS[:, None] * model.head.weight[:, 0] + model.head_bias_V
    return logits_P3.detach().log_softmax(1)


def guesses(learn, model, t):
    x_P11 = POINTS.float().view(-1, 1, 1)
    return learn.guess(model, x_P11, torch.full((len(POINTS),), t))[:, 0, 0].double().detach()


def step_back(chain, t, x, guess):
    """Return the mean and the variance of x_{t-1} given x_t and the embedding, by Bayes' rule for Gaussians."""
    a_s, a_t = chain.alpha_bar_L[t - 1].sqrt(), chain.alpha_bar_L[t].sqrt()
    v_s, v_t = chain.variance_L[t - 1], chain.variance_L[t]
    slope, rest = a_t / a_s, v_t - (a_t / a_s) ** 2 * v_s
    precision = 1 / v_s + slope**2 / rest
    return (a_s * guess / v_s + slope * x / rest) / precision, 1 / precision


def likelihoods(learn, model):
    """Return the exact probability of each token, by integrating x_T, …, x_0 on a grid."""
    width = (POINTS[1] - POINTS[0]).item()
    density_P = density(0.0, torch.tensor(1.0))
    for t in range(learn.steps, 0, -1):
        mean_P, variance = step_back(learn.chain, t, POINTS, guesses(learn, model, t))
        density_P = sum(
            (density(mean[:, None], variance) * p[:, None]).sum(0) * width
            for mean, p in zip(mean_P.split(200), density_P.split(200))
        )
    return (density_P[:, None] * rounding_P3(model).exp()).sum(0) * width


def bounds(learn, model):
    """Return the evidence lower bound of each token, negated, term by term as KL divergences of Gaussians."""
    width, chain, found = (POINTS[1] - POINTS[0]).item(), learn.chain, []
    for token, place in enumerate(torch.tensor(PLACES, dtype=torch.float64)):
        q_P = [density(a.sqrt() * place, v) * width for a, v in zip(chain.alpha_bar_L, chain.variance_L)]
        a, v = chain.alpha_bar_L[-1], chain.variance_L[-1]
        nats = (a * place**2 + v - 1 - v.log()) / 2 - (q_P[0] * rounding_P3(model)[:, token]).sum()
        for t in range(1, learn.steps + 1):
            true_P, variance = step_back(chain, t, POINTS, place)
            mean_P, _ = step_back(chain, t, POINTS, guesses(learn, model, t))
            nats = nats + (q_P[t] * (true_P - mean_P) ** 2).sum() / (2 * variance)
        found.append(nats)
    return torch.stack(found)


@pytest.mark.parametrize("clamp", ["none", "nearest", "soft"])
def test_the_bound_is_the_one_found_by_quadrature_and_above_the_negative_log_likelihood(clamp):
    learn = Fixed(width=1, steps=3, clamp=clamp, split=0.0, ancestral=True, draws=3, length=1)
    model = on_a_line(learn)
    p_3, bound_3 = likelihoods(learn, model), bounds(learn, model)
    assert p_3.sum().item() == pytest.approx(1, abs=1e-4)
    assert (bound_3 > -p_3.log()).all()
    n = 1_500
    for token in range(3):
        rows = torch.full((n, 1), token)
        nats_B = learn.nats(model, Batch(rows, rows, None, None, PAD), noise(n))
        error = nats_B.std().item() / n**0.5
        assert nats_B.mean().item() == pytest.approx(bound_3[token].item(), abs=4 * error)


@pytest.mark.parametrize("clamp", ["nearest", "soft"])
def test_predictions_are_clamped_to_embeddings(clamp):
    learn = objective(clamp=clamp)
    model, t, raw = model_for(learn), 7, objective()
    with torch.no_grad():
        all_VW, x_BTW = embedded(model, torch.arange(VOCAB)), torch.randn(2, LENGTH, learn.width)
        predicted_BTW = raw.guess(model, x_BTW, torch.full((2,), t))
        guess_BTW = learn.guess(model, x_BTW, torch.full((2,), t))
    to_prediction_V = (all_VW - predicted_BTW[1, 3]).square().sum(1)
    if clamp == "nearest":
        assert torch.equal(guess_BTW[1, 3], all_VW[to_prediction_V.argmin()])
        return
    a, v = learn.chain.alpha_bar_L[t].sqrt(), learn.chain.variance_L[t]
    to_x_V = (a * all_VW.double() - x_BTW[1, 3]).square().sum(1) / v
    p_V = (-(to_prediction_V + to_x_V) / 2).softmax(0)
    torch.testing.assert_close(guess_BTW[1, 3], (p_V @ all_VW.double()).float())


P_OF_TEXT = {text: p for text, p in zip(itertools.product(range(3), repeat=2), [0, 1, 4, 2, 6, 1, 0, 1, 1])}
"""Sixteenths of a language of two tokens."""


class Oracle(DiffuSeq):
    """Predicts the mean of x_0 given x_t, by enumerating all texts."""

    def predict(self, model, x_BTW, t_B, losses=None):
        all_NTW = embedded(model, torch.tensor(list(P_OF_TEXT)))
        a_B11 = self.chain.alpha_bar_L[t_B].view(-1, 1, 1)
        v_B11 = self.chain.variance_L[t_B].view(-1, 1, 1)
        distance_BN = torch.stack([(x_BTW - a_B11.sqrt() * e_TW).square().sum((1, 2)) for e_TW in all_NTW], 1)
        prior_N = torch.tensor(list(P_OF_TEXT.values())).log()
        p_BN = (prior_N - distance_BN / (2 * v_B11[:, 0])).softmax(1).float()
        mean_BTW = (p_BN @ all_NTW.flatten(1)).view(x_BTW.shape)
        k_B11 = (t_B > 1).view(-1, 1, 1) * a_B11.sqrt() * self.chain.first_std**2 / v_B11
        return (mean_BTW + k_B11 * (x_BTW - a_B11.sqrt() * mean_BTW)).float()


def test_a_perfect_model_is_above_the_entropy_and_closer_with_more_steps():
    texts = [text for text, p in P_OF_TEXT.items() for _ in range(p * 25)]
    rows = torch.tensor(texts)
    entropy = -sum(p / 16 * math.log(p / 16) for p in P_OF_TEXT.values() if p)
    above = {}
    for steps in (6, 480):
        learn = Oracle(
            width=8, steps=steps, clamp="none", split=0.0, ancestral=True, draws=min(steps, 60), length=2
        )
        model = model_for(learn, 3)
        with torch.no_grad():  # embeddings far apart, so that rounding takes no nats
            model.embedding.zero_()[:, :3] = torch.eye(3) * 4 / 50
            model.parts.project.weight.copy_(torch.eye(8, model.dim))
            nats_B = learn.nats(model, Batch(rows.roll(1, 1), rows, None, None, PAD), noise(len(rows)))
        error = nats_B.std().item() / len(rows) ** 0.5
        above[steps] = nats_B.mean().item() - entropy
        assert above[steps] > -2 * error
    assert error < 0.06 and above[480] < 0.1 < above[6]


def test_evaluation_is_the_same_twice_and_with_other_batches(tmp_path):
    cfg = minllm.compose([*TINY, f"data.cache={tmp_path}"])
    tokenizer = build(cfg.tokenizer)
    learn, model = build(cfg.objective), build_model(cfg, tokenizer)
    found = []
    for rows in (8, 8, 3):
        validation = open_data(build(cfg.data), tokenizer).validation(rows)
        found.append(evaluate(model, learn, validation, torch.device("cpu"), "fp32")["val_loss"])
    assert found[0] == found[1] == pytest.approx(found[2], rel=1e-5)
