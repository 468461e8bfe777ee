"""Kernels and fused operations on a GPU against plain formulas, in fp32 and bf16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minllm.model.kernels.attention import attend
from minllm.model.kernels.own import own_kernels
from minllm.model.scans.linear import linear_scan
from minllm.model.scans.moving_average import moving_average
from minllm.model.scans.selective import selective_scan
from minllm.objective import cross_entropy_gpu
from minllm.objective.cross_entropy import head_cross_entropy
from tests.gpu.figures import assert_near
from tests.test_scans import scanned

LENGTHS = [1, 7, 64, 259]


def results(compute, inputs: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    """Return the outputs of `compute`, and the gradients of its inputs."""
    given = {name: x.detach().to(device).requires_grad_() for name, x in inputs.items()}
    outputs = compute(**given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = 0.0
    for y in outputs:
        weights = torch.arange(1.0, y.numel() + 1, device=device).cos().view_as(y)
        loss = loss + ((y * weights).abs() if y.is_complex() else y * weights).sum()
    grads = torch.autograd.grad(loss, list(given.values()))
    named = {f"output {i}": y for i, y in enumerate(outputs)}
    named |= {f"d {name}": grad for name, grad in zip(given, grads)}
    return {name: torch.view_as_real(x) if x.is_complex() else x for name, x in named.items()}


def agree(compute, inputs: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    # a gradient may be zero but for rounding
    assert_near(results(compute, inputs, "cuda"), results(compute, inputs, "cpu"), tolerance, least=1e-3)


# ---- scans


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=["real", "complex"])
@pytest.mark.parametrize("factors", [(70, 3), (70, 1), (1, 3), (1, 1)], ids=str)
def test_the_linear_scan(length, kind, factors):
    a = torch.rand(2, length, *factors, dtype=kind) * 0.7
    inputs = {"a": a, "b": torch.randn(2, length, 70, 3, dtype=kind)}
    assert own_kernels("scan", *(x.cuda() for x in inputs.values())) is not None, "Triton isn't installed"
    agree(scanned, inputs, 5e-5)
    agree(scanned, inputs | {"h": torch.randn(2, 70, 3, dtype=kind)}, 5e-5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("has_state", [False, True], ids=["empty", "with a state"])
def test_the_selective_scan(length, has_state):
    B, D, N = 2, 37, 5
    inputs = {
        "x": torch.randn(B, length, D),
        "dt": torch.rand(B, length, D),
        "A": -2 * torch.rand(D, N),
        "write": torch.randn(B, length, N),
        "read": torch.randn(B, length, N),
    }
    keep = (torch.rand(B, length) > 0.2) if has_state else None
    if has_state:
        inputs["h"] = torch.randn(B, D, N)

    def compute(x, dt, A, write, read, h=None):
        return selective_scan(x, dt, A, write, read, h, None if keep is None else keep.to(x.device))

    agree(compute, inputs, 5e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["one segment", "packed"])
def test_the_complex_moving_average(packed):
    B, length, D, N = 2, 77, 6, 4
    inputs = {
        "x": torch.randn(B, length, D),
        "log_r": -torch.rand(D, N),
        "angle": torch.rand(D, N),
        "p": torch.randn(D, N),
        "gamma": torch.randn(D, N, 2),
        "omega": torch.randn(D),
    }
    starts = torch.where(torch.arange(length) < 30, 0, 30).expand(B, -1) if packed else None

    def compute(x, **rest):
        return moving_average(x, *rest.values(), None if starts is None else starts.to(x.device))

    agree(compute, inputs, 5e-5)


def test_scans_of_real_sizes_take_one_kernel():
    """A scan of 4,096 tokens takes far less than a launch for each of them would."""
    a, b = (torch.rand(4, 4096, 1024, device="cuda") for _ in range(2))
    linear_scan(a, b, None)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(5):
        linear_scan(a, b, None)
    end.record()
    torch.cuda.synchronize()
    milliseconds = start.elapsed_time(end) / 5
    print(f"linear scan, (4, 4096, 1024): {milliseconds:.3f} ms")
    assert milliseconds < 4.0, f"{milliseconds:.2f} ms"


# ---- the head and its loss


def plain_loss(x, weight, bias, targets, weights, softcap, z_loss) -> Tensor:
    logits = F.linear(x, weight, bias).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    counted = targets != -100
    losses = losses + torch.where(counted, z_loss * logits.logsumexp(-1).square(), 0)
    return (losses if weights is None else losses * weights).sum() / 100


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 3.0}, {"z_loss": 0.01}, {"weights": True, "softcap": 5.0, "z_loss": 1e-3}],
    ids=str,
)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_head_and_its_loss(precision, options, compiled, monkeypatch):
    """In several chunks, the last one shorter, at a vocabulary that isn't aligned and takes two blocks of columns."""
    N, D, V = 600, 64, 5003
    monkeypatch.setattr(cross_entropy_gpu, "LOGITS", 128 * V)
    inputs = {"x": torch.randn(N, D), "weight": torch.randn(V, D) / 8, "bias": torch.randn(V)}
    targets = torch.randint(V, (N,))
    targets[::5] = -100
    weights = torch.rand(N) if options.get("weights") else None
    softcap, z_loss = options.get("softcap"), options.get("z_loss", 0.0)

    def fused(x, weight, bias):
        its_weights = None if weights is None else weights.to(x.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            more = dict(softcap=softcap, z_loss=z_loss, weights_N=its_weights)
            return head_cross_entropy(x, weight, targets.to(x.device), bias, **more) / 100

    def plain(x, weight, bias):
        its_weights = None if weights is None else weights.to(x.device)
        return plain_loss(x, weight, bias, targets.to(x.device), its_weights, softcap, z_loss)

    if compiled:
        if len(options) == 1:
            pytest.skip("compiled without options and with all of them")
        torch._dynamo.reset()
    ours = results(torch.compile(fused) if compiled else fused, inputs, "cuda")
    assert_near(ours, results(plain, inputs, "cuda"), 2e-5 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("learning", [False, True])
def test_the_losses_and_the_right_answers_of_each_row(learning, softcap):
    x, weight = torch.randn(300, 32, device="cuda"), torch.randn(5003, 32, device="cuda")
    weight.requires_grad_(learning)
    logits = (x @ weight.T).detach()
    targets, each = torch.randint(5003, (300,), device="cuda"), torch.empty(300, device="cuda")
    targets[::3] = logits.argmax(-1)[::3]
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    targets[1::5] = -100
    right = torch.zeros(300, dtype=torch.bool, device="cuda")
    with torch.set_grad_enabled(learning):
        total = head_cross_entropy(x, weight, targets, softcap=softcap, each_N=each, right_N=right).detach()
    assert (right == (logits.argmax(-1) == targets)).all() and right.sum() >= 60
    plain = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    assert_near({"each": each, "sum": total}, {"each": plain, "sum": plain.sum()}, 1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_logits_are_never_stored_in_full(compiled):
    """At 131,072 rows and a vocabulary of 16,384, the logits would be 4 GiB in bf16; those of a chunk are 1 GiB."""
    N, D, V = 1 << 17, 64, 1 << 14
    x = torch.randn(N, D, device="cuda", requires_grad=True)
    weight = torch.randn(V, D, device="cuda", requires_grad=True)
    targets = torch.randint(V, (N,), device="cuda")

    def loss(x, weight):
        with torch.autocast("cuda", torch.bfloat16):
            return head_cross_entropy(x, weight, targets)

    torch._dynamo.reset()
    loss = torch.compile(loss) if compiled else loss
    loss(x, weight).backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss(x, weight).backward()
    extra = (torch.cuda.max_memory_allocated() - before) / 2**20
    print(f"the head and its loss: {extra:,.0f} MiB")
    assert extra < 1500, f"{extra:,.0f} MiB"


def test_nothing_waits_for_the_device():
    x = torch.randn(256, 32, device="cuda", requires_grad=True)
    weight = torch.randn(97, 32, device="cuda", requires_grad=True)
    targets = torch.randint(97, (256,), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        head_cross_entropy(x, weight, targets).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- attention


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])
def test_grouped_attention_uses_a_fused_kernel(masked):
    """Under bf16 autocast, no fused kernel for it would be an error here."""
    q = torch.randn(2, 4, 256, 64, device="cuda", requires_grad=True)
    k, v = (torch.randn(2, 2, 256, 64, device="cuda", requires_grad=True) for _ in range(2))
    visible = torch.ones(1, 1, 256, 256, dtype=torch.bool, device="cuda").tril() if masked else None
    backends = [
        torch.nn.attention.SDPBackend.FLASH_ATTENTION,
        torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION,
        torch.nn.attention.SDPBackend.CUDNN_ATTENTION,
    ]
    with torch.nn.attention.sdpa_kernel(backends), torch.autocast("cuda", torch.bfloat16):
        y = attend(q, k, v, visible)
    y.float().square().sum().backward()
    reference = F.scaled_dot_product_attention(
        *(x.detach().cpu() for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    assert_near({"y": y.float()}, {"y": reference}, 2e-2)
    assert all(x.grad.isfinite().all() for x in (q, k, v))
