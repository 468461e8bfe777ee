"""Every scan against a loop over time that is slow and obviously right, in its results and its gradients."""

from __future__ import annotations

import functools
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minllm.model.kernels import installed as kernels
from minllm.model.scans.decaying import decaying_by_channel, decaying_by_head
from minllm.model.scans.delta import delta_rule
from minllm.model.scans.linear import linear_scan
from minllm.model.scans.selective import selective_scan
from tests.tiny import VOCAB, tiny_model

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
    agree(scanned, lambda a, b, h=None: slow_linear(a, b, h), [a, b, *h])


def scanned(a: Tensor, b: Tensor, h: Tensor | None = None) -> Tensor:
    """Return `linear_scan` of real numbers, or of complex ones as pairs."""
    if not b.is_complex():
        return linear_scan(a, b, h)
    a, b, h = (None if x is None else torch.view_as_real(x) for x in (a, b, h))
    return torch.view_as_complex(linear_scan(a, b, h, pairs=True))


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
    fast = functools.partial(decaying_by_head, chunk=CHUNK) if by == "head" else decaying_by_channel
    agree(
        lambda q, k, v, log_a, state=None: fast(q, k, v, log_a, state, starts),
        lambda q, k, v, log_a, state=None: slow_decaying(q, k, v, log_a, state, starts),
        inputs,
    )


def test_the_strongest_decays_stay_finite():
    """Also with their gradients, and more than allowed."""
    q, k, v = (torch.randn(1, 32, 1, 4) for _ in range(3))
    log_a = torch.full((1, 32, 1, 4), -30.0).requires_grad_()
    y, _ = decaying_by_channel(q, k, v, log_a)
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
    inputs += [torch.randn(B, length, H, V), 2 * torch.rand(B, length, H)]  # also with negative eigenvalues
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


@pytest.mark.parametrize("choice", ["model/rec=deltanet", "model/rec=gated_deltanet"])
@pytest.mark.parametrize("negative", [False, True])
def test_negative_eigenvalues_are_those_of_a_doubled_gate(choice, negative, monkeypatch):
    model = tiny_model(choice, f"model.rec.negative_eigenvalues={str(negative).lower()}", randomised=True)
    given, fast = [], delta_rule

    def spied(q, k, v, beta, log_a, *rest, **options):
        given.append((q, k, v, beta, log_a))
        return fast(q, k, v, beta, log_a, *rest, **options)

    monkeypatch.setattr("minllm.model.recurrent.deltanet.delta_rule", spied)
    with torch.no_grad():
        model(torch.randint(VOCAB, (B, 40)))
    betas = torch.cat([beta.flatten() for _, _, _, beta, _ in given])
    assert (betas > 0).all() and (betas < (2 if negative else 1)).all() and (betas > 1).any() == negative


def test_a_token_can_flip_what_is_stored():
    """Parity needs a factor of −1 for some tokens, which β = 2 gives."""
    k = F.normalize(torch.randn(1, 1, 1, K), dim=-1).expand(1, 7, 1, K)
    v, beta = torch.zeros(1, 7, 1, V), torch.tensor([1.0, 0, 2, 2, 0, 2, 0]).view(1, 7, 1)
    v[:, 0] = 1
    y, _ = delta_rule(k, k, v, beta, chunk=3)
    signs = torch.tensor([1.0, 1, -1, 1, 1, -1, -1]).view(1, 7, 1, 1).expand_as(y)
    torch.testing.assert_close(y, signs, atol=1e-5, rtol=1e-5)


# ---- kernels of others ---------------------------------------------------------------------------


def pretend_installed(monkeypatch, module: str, name: str, function) -> list:
    """Make `from module import name` give a function that notes its calls, as if this were a GPU in bf16."""
    calls = []

    def noted(**given):
        calls.append(given)
        return function(**given)

    parts = module.split(".")
    for i in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
    setattr(sys.modules[module], name, noted)
    kernels._imported.cache_clear()
    monkeypatch.setattr(kernels, "_wanted", lambda x: True)
    return calls


def by_documents(scan):
    """Return a kernel as flash-linear-attention documents it: (1, B·T, H, …) with `cu_seqlens`, or (B, T, H, …)."""

    def run(q, k, v, scale, initial_state, output_final_state, cu_seqlens=None, **gates):
        assert scale == 1.0 and output_final_state and q.shape[:3] == k.shape[:3] == v.shape[:3]
        if cu_seqlens is None:
            return scan(q.float(), k.float(), v.float(), **gates, state=initial_state)
        assert len(q) == 1 and initial_state is None and cu_seqlens[-1] == q.shape[1]
        pieces = [slice(a, b) for a, b in zip(cu_seqlens, cu_seqlens[1:])]
        parts = [
            scan(
                *(x[:, piece].float() for x in (q, k, v)),
                **{n: g[:, piece] for n, g in gates.items()},
                state=None,
            )
            for piece in pieces
        ]
        return torch.cat([y for y, _ in parts], dim=1), torch.cat([state for _, state in parts])

    return run


@pytest.mark.parametrize("case", ["a state", "packed", "plain"])
@pytest.mark.parametrize("kind", ["head", "channel", "delta", "gated delta"])
def test_kernels_that_are_installed_are_called_as_they_document(monkeypatch, kind, case):
    """A literal loop stands for the kernel, which needs a GPU: the call and its answer are what is tested here."""
    starts = segments(19, begins_before=False) if case == "packed" else None
    state = torch.randn(B, H, K, V) if case == "a state" else None
    groups = G if kind == "head" else H
    q, k, v = (torch.randn(B, 19, n, width) for n, width in [(groups, K), (groups, K), (H, V)])
    # what bf16 holds, so that the kernel is given no less
    q, k, v = (x.bfloat16().float() for x in (q, F.normalize(k, dim=-1), v))
    beta, log_a = torch.rand(B, 19, H), -torch.rand(B, 19, H, *([K] if kind == "channel" else []))

    def decaying(q, k, v, g, state):
        return loop_of(slow_decaying, q, k, v, g, state=state)

    def delta(q, k, v, beta, state, g=None):
        g = torch.zeros_like(beta) if g is None else g
        return loop_of(slow_delta, q, k, v, beta, g, state=state)

    scan, module, name, loop = {
        "head": (lambda: decaying_by_head(q, k, v, log_a, state, starts, chunk=8),
                 "fla.ops.simple_gla", "chunk_simple_gla", decaying),
        "channel": (lambda: decaying_by_channel(q, k, v, log_a, state, starts),
                    "fla.ops.gla", "chunk_gla", decaying),
        "delta": (lambda: delta_rule(q, k, v, beta, None, state, starts, chunk=8),
                  "fla.ops.delta_rule", "chunk_delta_rule", delta),
        "gated delta": (lambda: delta_rule(q, k, v, beta, log_a, state, starts, chunk=8),
                        "fla.ops.gated_delta_rule", "chunk_gated_delta_rule", delta),
    }[kind]  # fmt: skip
    calls = pretend_installed(monkeypatch, module, name, by_documents(loop))
    fast = scan()
    monkeypatch.setattr(kernels, "_wanted", lambda x: False)
    ours = scan()
    assert len(calls) == 1 and calls[0]["q"].dtype == torch.bfloat16
    for one, other in zip(fast, ours):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def loop_of(slow, *inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a loop, whose empty state is made for B rows, on as many rows as there are."""
    rows = len(inputs[0])
    state = torch.zeros(rows, H, K, V) if state is None else state
    return slow(*inputs, state, None)


def test_mambas_kernel_is_called_as_it_documents(monkeypatch):
    x, dt, A = torch.randn(B, 19, D), torch.rand(B, 19, D), -torch.rand(D, N)
    write, read = torch.randn(B, 19, N), torch.randn(B, 19, N)

    def selective_scan_fn(u, delta, A, B, C, return_last_state):
        assert return_last_state and u.shape == delta.shape == (2, D, 19) and B.shape == C.shape == (2, N, 19)
        y, h = slow_selective(u.mT, delta.mT, A, B.mT, C.mT, None, None)
        return y.mT, h

    calls = pretend_installed(
        monkeypatch, "mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", selective_scan_fn
    )
    fast = selective_scan(x, dt, A, write, read)
    monkeypatch.setattr(kernels, "_wanted", lambda x: False)
    for one, other in zip(fast, selective_scan(x, dt, A, write, read)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert len(calls) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels need a GPU, and there is none here")
@pytest.mark.parametrize("choice", ["gla", "mamba2", "deltanet", "gated_deltanet", "mamba"])
def test_kernels_give_what_the_scans_give(choice, monkeypatch):
    """On a GPU, in bf16, where `minllm[kernels]` is installed."""
    pytest.importorskip("mamba_ssm" if choice == "mamba" else "fla", reason="pip install 'minllm[kernels]'")
    model, batch = tiny_model(f"model/rec={choice}").cuda(), torch.randint(VOCAB, (2, 64), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        fast = model(batch)
        monkeypatch.setattr(kernels, "_wanted", lambda x: False)
        torch.testing.assert_close(fast, model(batch), atol=0.05, rtol=0.05)
