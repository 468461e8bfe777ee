"""Optimizers: each against its formula, and what all of them owe: who decays, and that a run goes on to the bit."""

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.model.parameter import Linear, SplitLinear, constant, initialise, normal, parameter
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.training import checkpoints
from minllm.training.checkpoints import Progress
from tests.tiny import options, tiny_cfg, tiny_model, tokens

ALL = options("optim")


class Zoo(nn.Module):
    """A parameter of every sort that an optimizer may meet, each named by what it is."""

    def __init__(self):
        super().__init__()
        self.embedding = parameter(9, 8, kind="embedding", draw=normal(0.5))
        self.wide = Linear(8, 12, stream="reads", bias=True)
        self.packed = SplitLinear(8, [8, 4, 4], stream="reads")
        self.experts = parameter(3, 8, 8, kind="matrix", draw=normal(0.3))
        self.gain = parameter(8, kind="vector", draw=constant(1))
        self.head = Linear(8, 9, stream="reads")
        initialise(self, seed=0)

    @property
    def head_weight_VD(self):
        return self.head.weight


MATRICES = {"wide.weight", "packed.weight", "experts", "head.weight"}
ORTHOGONAL = {"wide.weight": [12], "packed.weight": [8, 4, 4]}
"""What Muon moves itself, and the heights of the parts that it takes apart."""


def made(model, choice, **changed):
    node = OmegaConf.merge(tiny_cfg(choice).optim, changed)
    return build(node, model), node


def gradients(model, seed):
    """Give every parameter a random gradient."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def rate(seed):
    return 0.01 / (1 + seed)


def take_steps(model, optimizer, seeds):
    for seed in seeds:
        optimizer.zero_grad()
        gradients(model, seed)
        for group in optimizer.param_groups:
            group["lr"] = rate(seed)
        optimizer.step()


# ---- each against its formula; a new option is held to what follows after these ------------------


class Reference:
    """One parameter's steps, written as the papers write them: lr times `direction(g)` is taken from the weights."""

    def __init__(self, node):
        self.node, self.t, self.m, self.v = node, 0, 0.0, 0.0

    def adamw(self, g):
        b1, b2 = self.node.beta1, self.node.beta2
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        return (self.m / (1 - b1**self.t)) / ((self.v / (1 - b2**self.t)).sqrt() + self.node.eps)

    def lion(self, g):
        b1, b2 = self.node.beta1, self.node.beta2
        direction = torch.sign(b1 * self.m + (1 - b1) * g)
        self.m = b2 * self.m + (1 - b2) * g
        return direction

    def sgd(self, g):
        self.m = self.node.momentum * self.m + g
        return g + self.node.momentum * self.m if self.node.nesterov else self.m

    def muon(self, g, heights):
        mu = self.node.momentum
        self.m = mu * self.m + (1 - mu) * g
        ahead = mu * self.m + (1 - mu) * g if self.node.nesterov else self.m
        return torch.cat([0.2 * max(x.shape) ** 0.5 * orthogonal(x) for x in ahead.split(heights)])

    def direction(self, choice, name, g):
        if choice == "optim=muon":
            return self.muon(g, ORTHOGONAL[name]) if name in ORTHOGONAL else self.adamw(g)
        return getattr(self, choice.removeprefix("optim="))(g)


def orthogonal(x):
    """X ← aX + b(XXᵀ)X + c(XXᵀ)²X, five times: what it does to each singular value."""
    u, s, vh = torch.linalg.svd(x / x.norm(), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ vh


@pytest.mark.parametrize(
    ("choice", "changed"),
    [
        *[(choice, {}) for choice in ("optim=adamw", "optim=lion", "optim=muon", "optim=sgd")],
        *[(choice, {"cautious_decay": True}) for choice in ("optim=adamw", "optim=lion", "optim=sgd")],
        *[(choice, {"nesterov": False}) for choice in ("optim=muon", "optim=sgd")],
    ],
    ids=str,
)
def test_it_steps_as_its_formula_says(choice, changed):
    model = Zoo()
    optimizer, node = made(model, choice, weight_decay=0.5, **changed)
    expected = values(model)
    references = {name: Reference(node) for name in expected}
    for seed in range(6):
        take_steps(model, optimizer, [seed])
        for name, p in model.named_parameters():
            x, u = expected[name], references[name].direction(choice, name, p.grad)
            decay = 0.5 * (name in MATRICES or name == "embedding")
            where = (u * x >= 0) if node.cautious_decay else 1.0
            expected[name] = x - rate(seed) * (u + decay * where * x)
    for name, p in model.named_parameters():
        # Muon's products are of bfloat16, which has less than three digits
        tolerance = 5e-4 if choice == "optim=muon" and name in ORTHOGONAL else 1e-6
        assert torch.allclose(p, expected[name], rtol=0, atol=tolerance), name


def test_muon_makes_the_inner_matrices_orthogonal_and_leaves_the_rest_to_adamw():
    model = Zoo()
    before = values(model)
    take_steps(model, made(model, "optim=muon", weight_decay=0.0)[0], [0])
    for name, p in model.named_parameters():
        step = (before[name] - p.detach()) / rate(0)
        if name not in ORTHOGONAL:  # AdamW's first step is the gradient's sign
            assert torch.allclose(step, p.grad.sign(), atol=1e-3), name
            continue
        for part in step.split(ORTHOGONAL[name]):
            singular = torch.linalg.svdvals(part) / (0.2 * max(part.shape) ** 0.5)
            assert singular.min() > 0.5 and singular.max() < 1.3, name


def test_muon_takes_an_untied_head_for_no_inner_matrix():
    model = tiny_model("optim=muon", "model.tie_embeddings=false")
    optimizer, _ = made(model, "optim=muon")
    take_steps(model, optimizer, [0])
    by_adamw = {path for path, p in model.named_parameters() if "exp_avg" in optimizer.state[p]}
    assert by_adamw == {path for path, p in model.named_parameters() if p.ndim == 1} | {
        "embedding",
        "head.weight",
    }


# ---- what each of them owes ----------------------------------------------------------------------


@pytest.mark.parametrize("decay_embeddings", [True, False])
@pytest.mark.parametrize("cautious", [True, False])
@pytest.mark.parametrize("choice", ALL)
def test_only_matrices_decay_and_embeddings_where_asked(choice, cautious, decay_embeddings):
    """A gradient of zero moves nothing, so what changes has decayed; where the step is zero the cautious decay too."""
    model = Zoo()
    changed = {"weight_decay": 0.5, "cautious_decay": cautious, "decay_embeddings": decay_embeddings}
    optimizer, _ = made(model, choice, **changed)
    before = values(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    for name, p in model.named_parameters():
        decays = name in MATRICES or (name == "embedding" and decay_embeddings)
        assert torch.allclose(p, before[name] * (0.95 if decays else 1.0)), name


@pytest.mark.parametrize("choice", ALL)
def test_cautious_decay_acts_where_the_step_and_the_weight_have_one_sign(choice):
    """x ← x - lr (u + λ 1[u x ≥ 0] x), with the u of an optimizer that decays nothing."""
    cautious, bare = Zoo(), Zoo()
    optimizer, _ = made(cautious, choice, weight_decay=0.5, cautious_decay=True)
    without, _ = made(bare, choice, weight_decay=0.0)
    for seed in range(4):
        before = values(cautious)
        bare.load_state_dict(before)
        take_steps(cautious, optimizer, [seed])
        take_steps(bare, without, [seed])
        for (name, p), moved in zip(cautious.named_parameters(), bare.parameters()):
            x, u = before[name], before[name] - moved
            decay = rate(seed) * 0.5 * (name in MATRICES or name == "embedding")
            assert torch.allclose(p, moved - decay * ((u * x >= 0) * x), rtol=0, atol=2e-7), name
            if decay:
                assert 0.1 < (u * x >= 0).float().mean() < 0.9


@pytest.mark.parametrize("choice", ALL)
def test_what_has_no_gradient_neither_moves_nor_decays(choice):
    model = Zoo()
    optimizer, _ = made(model, choice)
    before = values(model)
    gradients(model, seed=0)
    model.experts.grad = model.wide.weight.grad = None
    optimizer.step()
    kept = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert kept == {"experts", "wide.weight"}


@pytest.mark.parametrize("cautious", [True, False])
@pytest.mark.parametrize("choice", ALL)
def test_it_goes_on_from_a_checkpoint_to_the_bit(choice, cautious, tmp_path):
    model, again = Zoo(), Zoo()
    optimizer, _ = made(model, choice, cautious_decay=cautious)
    take_steps(model, optimizer, range(3))
    checkpoints.save(tmp_path, model, optimizer, Progress(step=3), keep=1)
    take_steps(model, optimizer, range(3, 6))

    its_optimizer, _ = made(again, choice, cautious_decay=cautious)
    checkpoints.load_weights(tmp_path / "step-000003", again)
    checkpoints.load_optimizer(tmp_path / "step-000003", its_optimizer)
    take_steps(again, its_optimizer, range(3, 6))
    for one, other in zip(model.parameters(), again.parameters()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("choice", ALL)
def test_it_lowers_the_loss(choice):
    """With the options of its file, and a learning rate that rises to the file's as a run's does."""
    model, batch = tiny_model(choice), tokens(8)
    optimizer, node = made(model, choice)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = node.lr * min(1, (step + 1) / 10)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lr=0"], "optim.lr must be a number above 0, not 0"),
        (["optim.cautious_decay=often"], "optim.cautious_decay must be true or false, not 'often'"),
        (["optim=lion", "+optim.eps=1"], "optim has no option 'eps'"),
        (["optim=lion", "optim.beta2=1"], "optim.beta2 must be a number from 0 to below 1, not 1"),
        (["optim=muon", "optim.momentum=1.0"], "optim.momentum must be a number from 0 to below 1"),
        (["optim=sgd", "optim.weight_decay=-0.1"], "optim.weight_decay must be a number of 0 or more"),
        (["optim=adam"], "adamw"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_sentence(words, said):
    with pytest.raises(UserError, match=said):
        validate(compose(words))


def test_nesterov_without_momentum_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="optim.nesterov=true .* optim.momentum is 0"):
        made(Zoo(), "optim=sgd", momentum=0.0)
