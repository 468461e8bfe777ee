"""`train.graphs` without a GPU: which passes are captured, and the gradients that a graph adds up.

A stand-in for CUDA graphs computes the captured pass when it is replayed. tests/gpu has the real ones.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from minllm.errors import UserError
from minllm.objective import Inputs, Objective
from minllm.schema.building import build
from minllm.training import graphs
from minllm.training.graphs import WARM_UP, GradientGraph, check_graphs, why_not
from tests.tiny import tiny_cfg, tiny_model, tokens

CUDA = torch.device("cuda")


def settings(*choices: str):
    return build(tiny_cfg(*choices).train)


def reason(*choices: str, device: torch.device = CUDA) -> str | None:
    cfg = tiny_cfg(*choices)
    return why_not(build(cfg.train), tiny_model(*choices), build(cfg.objective), device)


def test_what_is_captured():
    assert reason("model/attn=mla", "model/rec=mamba") is None
    assert reason(device=torch.device("cpu")) == "there are no CUDA graphs on cpu"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("model/mlp=moe", "keeps counts of each step"),
        ("objective=diffuseq", "differ from step to step"),
        ("train.recompute=layers", "random number generators"),
    ],
)
def test_what_is_not_captured(choice, expected):
    assert expected in reason(choice)


def test_an_impossible_request_is_refused():
    compiled = ("train.compile=true", "train.graphs=true")
    with pytest.raises(UserError, match="there are no CUDA graphs on cpu. Type train.graphs=auto"):
        check_graphs(settings(*compiled), tiny_model(), Objective(), torch.device("cpu"))
    check_graphs(settings(*compiled), tiny_model(), Objective(), CUDA)
    check_graphs(settings(), tiny_model(), Objective(), torch.device("cpu"))
    with pytest.raises(UserError, match="add train.compile=true"):
        settings("train.graphs=true")


class Recorded:
    """Repeats `add_gradient` with the inputs that it was captured with, writing its loss to the same address."""

    def __init__(self):
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.graph.loss.copy_(self.graph.add_gradient(self.graph.inputs, self.graph.counted))


@pytest.fixture
def stand_in(monkeypatch):
    """Let graphs be captured on a CPU; returns the list of those that were, and of the places where the host waits."""
    captured: list[Recorded] = []
    waits: list[str] = []

    @contextlib.contextmanager
    def capture(graph: Recorded, capture_error_mode: str):
        before = [gradient.clone() for gradient in graph.graph.gradients.values()]
        yield
        captured.append(graph)
        for gradient, value in zip(graph.graph.gradients.values(), before, strict=True):
            gradient.copy_(value)  # a capture computes nothing

    def event(enable_timing: bool):
        return SimpleNamespace(record=int, synchronize=int, elapsed_time=lambda end: 1e-6)

    monkeypatch.setattr(graphs, "aside", contextlib.nullcontext)
    monkeypatch.setattr(graphs, "host_waits", lambda: contextlib.nullcontext(waits))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "synchronize", int)
    return SimpleNamespace(captured=captured, waits=waits, patch=monkeypatch, said=[])


def gradients_of_steps(stand_in, wanted, rows_of_steps, release_at=None):
    """Return the summed gradients and losses of steps whose batches are given as sizes of micro-batches."""
    model, objective = tiny_model(randomised=True), build(tiny_cfg().objective)

    def add(rows, counted):
        loss = objective.loss(model, rows) / counted
        loss.backward()
        return loss.detach()

    graph = GradientGraph(model, add, wanted, say=stand_in.said.append)

    stand_in.patch.setattr(torch.cuda, "CUDAGraph", lambda: recorded_of(graph))
    results = []
    for step, sizes in enumerate(rows_of_steps):
        model.zero_grad()
        if step == release_at:
            graph.release()
        losses = []
        for i, size in enumerate(sizes):
            row = tokens(size, 9, seed=10 * step + i)
            rows = Inputs(row[:, :-1].contiguous(), row[:, 1:].contiguous())
            losses.append(graph(rows, torch.tensor(float(size + step))).clone())
        results.append((losses, [None if p.grad is None else p.grad.clone() for p in model.parameters()]))
    return results


@pytest.mark.parametrize("release_at", [None, 3])
def test_replays_add_up_the_same_gradients(stand_in, release_at):
    """Several micro-batches, the last one smaller; a graph that is freed, and another size from then on."""
    captured = stand_in.captured
    size = [2, 2, 1] if release_at is None else [3, 3]
    steps = [[2, 2, 1]] * 3 + [size] * 4
    plain = gradients_of_steps(stand_in, False, steps)
    assert not captured
    replayed = gradients_of_steps(stand_in, True, steps, release_at)
    assert len(captured) == (1 if release_at is None else 2)
    full = sum(sizes.count(max(sizes)) for sizes in steps)
    assert sum(graph.replays for graph in captured) == full - WARM_UP * len(captured)
    assert_equal(replayed, plain)


def test_a_model_whose_host_waits_is_not_captured(stand_in):
    stand_in.waits.append("an operation")
    steps = [[2]] * 5
    assert_equal(gradients_of_steps(stand_in, "auto", steps), gradients_of_steps(stand_in, False, steps))
    assert stand_in.said == [
        "Not capturing CUDA graphs: in a pass of this model, the host waits for the device."
    ]
    with pytest.raises(UserError, match="train.graphs=true isn't possible: .* the host waits"):
        gradients_of_steps(stand_in, True, steps)
    assert not stand_in.captured


@pytest.mark.parametrize(("milliseconds", "captures"), [(1e-6, True), (1e6, False)])
def test_passes_are_captured_if_the_host_is_slow(stand_in, milliseconds, captures):
    event = SimpleNamespace(record=int, synchronize=int, elapsed_time=lambda end: milliseconds)
    stand_in.patch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    gradients_of_steps(stand_in, "auto", [[2]] * 5)
    assert bool(stand_in.captured) is captures
    assert stand_in.said[0].startswith(
        f"{'Capturing' if captures else 'Not capturing'} CUDA graphs: a pass takes"
    )


def test_nothing_is_compiled_during_a_capture(stand_in):
    """Not even if micro-batches are views of a batch, and code for any number of rows was compiled before."""
    compiled: list[bool] = []
    """For each time, whether it was during a capture."""

    def backend(graph_module, example_inputs):
        compiled.append(capturing)
        return graph_module

    capturing = False
    capture = torch.cuda.graph

    @contextlib.contextmanager
    def noted(graph, capture_error_mode):
        nonlocal capturing
        capturing = True
        with capture(graph, capture_error_mode):
            yield
        capturing = False

    stand_in.patch.setattr(torch.cuda, "graph", noted)
    torch._dynamo.reset()
    model, objective = tiny_model("model.layout=[mlp]", n_layers=1), build(tiny_cfg().objective)
    loss_of = torch.compile(objective.loss, backend=backend)

    def add(rows, counted):
        loss = loss_of(model, rows) / counted
        loss.backward()
        return loss.detach()

    def passes(size, graph):
        whole = tokens(4 * size, 9, seed=0)
        inputs = Inputs(whole[:, :-1].contiguous(), whole[:, 1:].contiguous())
        for start in range(0, 4 * size, size):
            graph(inputs.rows(slice(start, start + size)), torch.tensor(1.0))

    for size in (1, 2):  # from the second size on, code is compiled for any
        passes(size, add)
    before = len(compiled)
    graph = GradientGraph(model, add, True, say=stand_in.said.append)
    stand_in.patch.setattr(torch.cuda, "CUDAGraph", lambda: recorded_of(graph))
    passes(3, graph)
    assert len(stand_in.captured) == 1 and len(compiled) > before > 0
    assert not any(compiled)


def recorded_of(graph: GradientGraph) -> Recorded:
    made = Recorded()
    made.graph = graph
    return made


def assert_equal(ours, theirs):
    for (losses, gradients), (their_losses, their_gradients) in zip(ours, theirs, strict=True):
        assert losses == their_losses
        for gradient, reference in zip(gradients, their_gradients, strict=True):
            assert gradient is reference is None or torch.equal(gradient, reference)
