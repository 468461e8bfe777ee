"""What GPUs compute in their own way, on a CPU: interpreted Triton kernels, and the head's loss in large chunks."""

import importlib.util
import os
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.attention import flex_attention

from minllm.model.attention.mask import Blocks, Dilated, Full, Strided, Window
from minllm.model.context import Context, Position
from minllm.model.kernels import flex, own
from minllm.model.kernels.own import own_kernels
from minllm.model.stack import positions_in
from minllm.objective import cross_entropy_gpu
from minllm.objective.cross_entropy import head_cross_entropy
from minllm.objective.cross_entropy_gpu import (
    fused_cross_entropy,
    fused_operation,
    head_cross_entropy_on_gpu,
    rows_per_chunk,
)
from minllm.sweep.prediction import Imagined
from minllm.training import machine
from minllm.training.preparation import kernels_note

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow  # a process of its own, which imports torch
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton isn't installed: pip install triton"
)
def test_the_triton_kernels_compute_what_plain_torch_does():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.interpreted"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "only 0-dimensional arrays" in done.stderr:
        pytest.skip("the interpreter of this Triton can't use this NumPy: pip install 'numpy<2.4'")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "compared: 84\n", done.stdout


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 3.0}, {"z_loss": 0.1}, {"softcap": 2.0, "z_loss": 0.01, "weighted": True}],
    ids=str,
)
def test_large_chunks_have_the_loss_and_gradients_of_small_ones(precision, bias, options, monkeypatch):
    monkeypatch.setattr(cross_entropy_gpu, "LOGITS", 128 * 61)
    torch.manual_seed(0)
    x, weight, b = torch.randn(300, 16), torch.randn(61, 16), torch.randn(61)
    targets = torch.randint(0, 61, (300,))
    targets[::7] = -100
    options = {**options, "weights_N": torch.rand(300) if options.get("weighted") else None}
    options.pop("weighted", None)
    results = []
    for compute in (head_cross_entropy_on_gpu, head_cross_entropy):
        given = [t.clone().requires_grad_() for t in (x, weight, b)[: 3 if bias else 2]]
        each = torch.zeros(300)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = compute(given[0], given[1], targets, *given[2:], **options, each_N=each) / 7
        loss.backward()
        results.append([loss.detach(), each, *(t.grad for t in given)])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= (1e-6 if precision == "fp32" else 1e-2) * other.abs().max()


@pytest.mark.parametrize("compute", [fused_cross_entropy, fused_operation])
def test_no_kernel_is_launched_where_memory_is_predicted(compute, monkeypatch):
    """Fake tensors have no values. The kernel allocates only its results, four bytes and one for each row."""
    monkeypatch.setattr(own, "WHY_NOT", None)
    # a build of torch for CPUs makes fake tensors of a GPU, but can't compute with them
    cpu = torch.device("cpu")
    with FakeTensorMode(), Imagined(cpu) as storages:
        assert own_kernels("scan", torch.empty(2, 8, 4, device="cuda")) is None
        logits, targets, factor = torch.empty(300, 64), torch.zeros(300, dtype=torch.long), torch.ones(300)
        before = storages.bytes
        losses, right = compute(logits, targets, factor, 61, None, 0.0, True, True)
        assert storages.peak_bytes == storages.bytes == before + 300 * 4 + 300
    assert losses.shape == right.shape == (300,)


def test_rows_that_do_not_count_may_hold_anything():
    x, weight = torch.randn(8, 4), torch.randn(5, 4, requires_grad=True)
    x[::2] = torch.nan
    targets = torch.arange(8) % 5
    targets[::2] = -100
    x.requires_grad_()
    loss = head_cross_entropy_on_gpu(x, weight, targets)
    loss.backward()
    plain = torch.nn.functional.cross_entropy(x.detach()[1::2] @ weight.T, targets[1::2], reduction="sum")
    torch.testing.assert_close(loss, plain)
    assert weight.grad.isfinite().all() and (x.grad[::2] == 0).all()


@pytest.mark.parametrize(("why_not", "times"), [("Triton isn't installed", 1), (None, 8)])
def test_a_chunk_is_as_many_rows_as_its_logits_allow(why_not, times, monkeypatch):
    monkeypatch.setattr(own, "WHY_NOT", why_not)
    assert rows_per_chunk(50304) == 1024 * times and rows_per_chunk(4096) == 16384 * times
    assert rows_per_chunk(1 << 24) == 128


@pytest.mark.parametrize(
    ("compilers", "variable", "header", "expected"),
    [
        (["gcc"], None, True, None),
        (["clang"], None, True, None),
        ([], "/opt/cc", True, None),
        (["cc"], None, True, "neither gcc nor clang was found"),
        (["gcc"], None, False, "Python's headers weren't found"),
    ],
)
def test_kernels_need_what_triton_needs(compilers, variable, header, expected, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(own.importlib.util, "find_spec", lambda name: None)
    assert own.why_not() == "Triton isn't installed"
    monkeypatch.setattr(own.importlib.util, "find_spec", lambda name: found("torch"))
    monkeypatch.setattr(own.shutil, "which", lambda name: name if name in compilers else None)
    monkeypatch.setattr(own.sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if variable:
        monkeypatch.setenv("CC", variable)
    if header:
        (tmp_path / "Python.h").touch()
    assert own.why_not() == expected


def test_a_gpu_without_kernels_is_not_compiled_for_and_the_log_says_so(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(own, "WHY_NOT", None)
    assert machine.choose_compile(gpu, seconds_left=1e4)[0] and kernels_note(gpu) is None
    monkeypatch.setattr(own, "WHY_NOT", "neither gcc nor clang was found")
    assert machine.choose_compile(gpu, seconds_left=1e4) == (False, "neither gcc nor clang was found")
    assert "because neither gcc nor clang was found" in kernels_note(gpu)
    assert kernels_note(torch.device("cpu")) is None


@pytest.mark.parametrize("rows", [8, 32])
def test_one_chunk_of_logits_is_held_at_a_time(rows, monkeypatch):
    """In eager code, whatever the number of chunks. The plain version stands in for the kernel."""
    monkeypatch.setattr(cross_entropy_gpu, "rows_per_chunk", lambda vocab_size: 8)
    living, most = [], 0
    plain_linear = torch.nn.functional.linear

    def linear(x, weight, bias=None):
        nonlocal most
        logits = plain_linear(x, weight, bias)
        living.append(weakref.ref(logits))
        most = max(most, sum(one() is not None for one in living))
        return logits

    monkeypatch.setattr(cross_entropy_gpu.F, "linear", linear)
    x, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(64, 4, requires_grad=True)
    head_cross_entropy_on_gpu(x, weight, torch.arange(rows)).backward()
    assert len(living) == rows // 8 and most == 1


MASKS = [
    Full(),
    Window(window=5),
    Strided(stride=4),
    Dilated(window=3, dilation=2),
    Blocks(size=8, n_global=1),
]
ORDER = torch.tensor([0] * 8 + [2] * 8 + [1] * 8 + [4] * 16).expand(1, -1)


@pytest.mark.parametrize("packed", [False, True], ids=["one segment", "packed"])
@pytest.mark.parametrize(
    ("causal", "order"), [(True, None), (False, None), (False, ORDER)], ids=["past", "all", "order"]
)
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: type(mask).__name__)
def test_attention_in_tiles_is_attention_with_an_explicit_mask(mask, causal, order, packed, monkeypatch):
    """The compiler, which takes most of the time, sees each kind of mask's functions in half of the cases."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", packed != causal)
    torch.manual_seed(0)
    T, place = 40, torch.arange(40)
    segments = torch.where(place < 13, 0, torch.where(place < 37, 1, -1)).expand(2, -1) if packed else None
    positions = positions_in(T, segments, torch.device("cpu"))
    ctx = Context(
        positions_BT=positions,
        positions_BS=positions,
        position=Position(4),
        segments_BT=segments,
        segments_BS=segments,
        causal=causal,
        order_BS=order,
    )
    q, k, v = (torch.randn(2, heads, T, 16) for heads in (4, 2, 2))
    tiles = flex.tiles(ctx.sees(mask), ctx.mask_rows(), T, q.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it isn't compiled here
        y = flex.attend_in_tiles(q, k, v, tiles, softcap=3.0)
    scores = 3.0 * torch.tanh((q / 4) @ k.repeat_interleave(2, 1).mT / 3.0)
    visible = ctx.visible(mask, explicit=True)
    expected = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
