"""Every scan against a loop over time that is slow and obviously right, in its results and its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minllm.model.scans.decaying import decaying_by_channel, decaying_by_head
from minllm.model.scans.delta import delta_rule
from minllm.model.scans.linear import linear_scan
from minllm.model.scans.selective import selective_scan
from tests.tiny import VOCAB, options, tiny_model

B, G, H, K, V, D, N = 2, 2, 4, 3, 5, 6, 3
CHUNK = 8
LENGTHS = [1, 7, 16, 37]


# ---- the loops -----------------------------------------------------------------------------------


def slow_linear(a: Tensor, b: Tensor, h: Tensor | None) -> Tensor:
    h, all_of_them = torch.zeros_like(b[:, 0]) if h is None else h, []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        all_of_them.append(h)
    return torch.stack(all_of_them, dim=1)


def slow_selective(x, dt, A, write, read, h, starts) -> tuple[Tensor, Tensor]:
    h, ys = torch.zeros(B, D, N) if h is None else h, []
    for t in range(x.shape[1]):
        h = forget(h, starts, t)
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * write[:, t, None]
        ys.append((h * read[:, t, None]).sum(-1))
    return torch.stack(ys, dim=1), h


def slow_decaying(q, k, v, log_a, state, starts) -> tuple[Tensor, Tensor]:
    """`log_a` is (B, T, H), or (B, T, H, K) where each channel of the keys decays by itself."""
    state, ys = torch.zeros(B, H, K, V) if state is None else state, []
    for t in range(q.shape[1]):
        a = log_a[:, t].exp()
        state = forget(state, starts, t) * (a[..., None, None] if a.ndim == 2 else a[..., None])
        query, key = (x[:, t].repeat_interleave(H // x.shape[2], dim=1)[..., None] for x in (q, k))
        state = state + key * v[:, t, :, None]
        ys.append((query * state).sum(-2))
    return torch.stack(ys, dim=1), state


def slow_delta(q, k, v, beta, log_a, state, starts) -> tuple[Tensor, Tensor]:
    state, ys = torch.zeros(B, H, K, V) if state is None else state, []
    for t in range(q.shape[1]):
        state = forget(state, starts, t) * log_a[:, t, :, None, None].exp()
        said = (k[:, t, ..., None] * state).sum(-2)
        state = state + k[:, t, ..., None] * (beta[:, t, :, None] * (v[:, t] - said))[:, :, None]
        ys.append((q[:, t, ..., None] * state).sum(-2))
    return torch.stack(ys, dim=1), state


def forget(state: Tensor, starts: Tensor | None, t: int) -> Tensor:
    """Empty the state of rows in which a segment begins at t."""
    return state if starts is None else state * (starts[:, t] != t).view(-1, *[1] * (state.ndim - 1))


# ---- the same by both ----------------------------------------------------------------------------


def agree(fast, slow, inputs: list[Tensor], tolerance: float = 1e-5) -> None:
    """Both give the same outputs, and the same gradients of all inputs, to so much of their largest number."""
    results = []
    for scan in (fast, slow):
        given = [x.clone().requires_grad_() for x in inputs]
        outputs = scan(*given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((y * torch.arange(1.0, y.numel() + 1).cos().view_as(y)).abs().sum() for y in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, given)])
    for one, other in zip(*results):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max())


def segments(length: int, begins_before: bool) -> Tensor:
    """Return where each token's segment begins; the first goes on from before, or not."""
    begins = torch.rand(B, length) < 0.15
    begins[:, 0] = True
    places = torch.arange(length).expand(B, -1)
    starts = torch.where(begins, places, 0).cummax(dim=1).values
    return starts.masked_fill(starts == 0, -5) if begins_before else starts


every_case = pytest.mark.parametrize("has_state", [False, True], ids=["empty", "with a state"])
every_length = pytest.mark.parametrize("length", LENGTHS)
packed_or_not = pytest.mark.parametrize("packed", [False, True], ids=["one segment", "packed"])


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


@every_case
@every_length
@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
def test_the_linear_scan(length, has_state, kind):
    a, b = torch.rand(B, length, D, 1, dtype=kind), torch.randn(B, length, D, N, dtype=kind)
    h = [torch.randn(B, D, N, dtype=kind)] if has_state else []
    agree(lambda a, b, h=None: linear_scan(a, b, h), lambda a, b, h=None: slow_linear(a, b, h), [a, b, *h])


@every_case
@every_length
@packed_or_not
def test_the_selective_scan(length, packed, has_state):
    starts = segments(length, has_state) if packed else None
    keep = None if starts is None else starts != torch.arange(length)
    inputs = [torch.randn(B, length, D), torch.rand(B, length, D), -torch.rand(D, N) * 3]
    inputs += [torch.randn(B, length, N), torch.randn(B, length, N)]
    inputs += [torch.randn(B, D, N)] if has_state else []
    agree(
        lambda x, dt, A, w, r, h=None: selective_scan(x, dt, A, w, r, h, keep),
        lambda x, dt, A, w, r, h=None: slow_selective(x, dt, A, w, r, h, starts),
        inputs,
    )


@every_case
@every_length
@packed_or_not
@pytest.mark.parametrize("by", ["head", "channel"])
def test_linear_attention_that_decays(by, length, packed, has_state):
    starts = segments(length, has_state) if packed else None
    groups = G if by == "head" else H
    log_a = -2 * torch.rand(B, length, H, *([] if by == "head" else [K]))
    inputs = [torch.randn(B, length, n, width) for n, width in [(groups, K), (groups, K), (H, V)]]
    inputs += [log_a, *([torch.randn(B, H, K, V)] if has_state else [])]
    fast = decaying_by_head if by == "head" else decaying_by_channel
    agree(
        lambda q, k, v, log_a, state=None: fast(q, k, v, log_a, state, starts, chunk=CHUNK),
        lambda q, k, v, log_a, state=None: slow_decaying(q, k, v, log_a, state, starts),
        inputs,
    )


def test_the_strongest_decays_stay_finite():
    """Also with their gradients, and more than allowed."""
    q, k, v = (torch.randn(1, 32, 1, 4) for _ in range(3))
    log_a = torch.full((1, 32, 1, 4), -30.0).requires_grad_()
    y, _ = decaying_by_channel(q, k, v, log_a, chunk=16)
    y.sum().backward()
    assert y.isfinite().all() and log_a.grad.isfinite().all()
    torch.testing.assert_close(y[:, 0], (q[:, 0] * k[:, 0]).sum(-1, keepdim=True) * v[:, 0])


@every_case
@every_length
@packed_or_not
@pytest.mark.parametrize("decays", [False, True], ids=["delta", "gated"])
def test_the_delta_rule(length, packed, has_state, decays):
    starts = segments(length, has_state) if packed else None
    inputs = [torch.randn(B, length, H, K), F.normalize(torch.randn(B, length, H, K), dim=-1)]
    inputs += [torch.randn(B, length, H, V), torch.rand(B, length, H)]
    inputs += [torch.randn(B, H, K, V)] if has_state else []
    log_a = -torch.rand(B, length, H) if decays else None
    slow_log_a = torch.zeros(B, length, H) if log_a is None else log_a
    agree(
        lambda q, k, v, b, state=None: delta_rule(q, k, v, b, log_a, state, starts, chunk=CHUNK),
        lambda q, k, v, b, state=None: slow_delta(q, k, v, b, slow_log_a, state, starts),
        inputs,
    )


def test_the_delta_rule_has_its_decays_gradient():
    inputs = [torch.randn(B, 20, H, K), F.normalize(torch.randn(B, 20, H, K), dim=-1)]
    inputs += [torch.randn(B, 20, H, V), torch.rand(B, 20, H), -torch.rand(B, 20, H)]
    agree(
        lambda *given: delta_rule(*given, chunk=CHUNK), lambda *given: slow_delta(*given, None, None), inputs
    )


# ---- whole mixers --------------------------------------------------------------------------------

every_mixer = pytest.mark.parametrize("choice", options("model/rec"))


@every_mixer
def test_five_hundred_steps_of_decoding_are_the_whole(choice):
    model = tiny_model(choice, randomised=True)
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
    model = tiny_model(choice, randomised=True, n_layers=1)
    batch = torch.randint(VOCAB, (2, 23))
    packed = torch.tensor([[0] * 9 + [1] * 14] * 2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for given in (None, packed):
        results = []
        for run in (compiled, model):
            logits = run(batch, given)
            grads = torch.autograd.grad(logits.square().mean(), list(model.parameters()))
            results.append([logits, *grads])
        for one, other in zip(*results):
            assert (one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max())
