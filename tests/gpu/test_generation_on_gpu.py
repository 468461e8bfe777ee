"""Generation with a captured step: the tokens of usual passes, and of a CPU."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import torch

from minllm.generation.decoding import FEWEST, Steps
from minllm.generation.generate import next_tokens
from minllm.generation.sampler import Sampling
from minllm.model.static import has_static_steps
from tests.tiny import tiny_model, tokens

DEVICE = "cuda"
GREEDY = {
    "temperature": 0.0,
    "top_k": None,
    "top_p": 1.0,
    "min_p": 0.0,
    "max_new_tokens": FEWEST + 8,
    "seed": 0,
}
ROWS = [row[:length].tolist() for row, length in zip(tokens(3, 9), (5, 9, 7))]
MODELS = [
    ("model/attn=mha", "model/pos=none", "model.attn.softcap=5"),
    ("model/attn=gqa",),
    ("model/attn=gqa", "model/attn/mask=window", "model/pos=alibi", "model.attn.value_residual=true"),
    ("model/attn=mqa", "model/attn/mask=blocks", "model/pos=t5", "model/residual=hyper"),
    ("model/attn=mla", "model/attn/mask=window"),
    ("model/attn=differential", "model/attn/mask=strided"),
    ("model/pos=learned", "model.pos.max_len=45", "model.attn.sinks=true"),
    ("model/layout=decoder", "model/encoder=same"),
    ("model/layout=griffin", "model/attn/mask=window"),
    *[
        (f"model/rec={name}",)
        for name in ("conv", "min_gru", "mamba", "mamba2", "mega", "deltanet", "gated_deltanet", "gla")
    ],
]


def written(model, rows=ROWS, **changed):
    """Return the tokens of each step."""
    sampling = Sampling(**{**GREEDY, **changed})
    generators = [torch.Generator().manual_seed(i) for i in range(len(rows))]
    sources = None if model.encoder is None else rows[::-1]
    return [*next_tokens(model, rows, generators, sampling, sources=sources)]


def in_passes(model, rows=ROWS, **changed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "pay", lambda passes, new_tokens: False)
        return written(model, rows, **changed)


@pytest.mark.parametrize("choices", MODELS, ids=" ".join)
def test_a_captured_step_writes_as_usual_passes_and_a_cpu_do(choices):
    model = tiny_model(*choices, randomised=True)
    assert has_static_steps(model)
    on_cpu = written(model)
    model.to(DEVICE)
    captured = written(model)
    assert captured == in_passes(model)
    assert captured == on_cpu


def test_mixtures_of_experts_generate():
    model = tiny_model("model/mlp=moe", randomised=True)
    on_cpu = written(model)
    assert written(model.to(DEVICE)) == on_cpu


@pytest.mark.parametrize("options", [{}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.05, "top_k": 20}])
def test_tokens_are_drawn_in_the_captured_step(options):
    model = tiny_model("model/attn=gqa", randomised=True).to(DEVICE)
    drawn = written(model, temperature=0.9, **options)
    assert drawn == in_passes(model, temperature=0.9, **options)
    assert len({tuple(step) for step in drawn}) > FEWEST // 2


def test_batches_of_other_sizes_follow():
    model = tiny_model("model/layout=griffin", randomised=True).to(DEVICE)
    for rows in (ROWS, ROWS[:1], ROWS * 3):
        assert written(model, rows) == in_passes(model, rows)


def test_generation_under_autocast():
    """In bf16 the two ways round differently, so of usual passes only the first token is compared."""
    model = tiny_model("model/attn=gqa", "model/attn/mask=window", randomised=True).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        captured, usual = written(model), in_passes(model)
    assert len(captured) == len(usual) == GREEDY["max_new_tokens"]
    assert captured[0] == usual[0]
    # where autocast ends, it frees its copies of weights, which the graph therefore must not read
    one_by_one, generators = [], [torch.Generator() for _ in ROWS]
    steps = next_tokens(model, ROWS, generators, Sampling(**GREEDY))
    for _ in captured:
        with torch.autocast(DEVICE, torch.bfloat16):
            one_by_one.append(next(steps))
        torch.full((1 << 20,), torch.nan, device=DEVICE)
    assert one_by_one == captured


def test_memory_is_free_after_generation():
    model = tiny_model("model/attn=gqa", randomised=True).to(DEVICE)
    written(model)  # libraries keep their workspaces
    gc.collect()
    before = torch.cuda.memory_allocated()
    written(model, ROWS * 4, max_new_tokens=100)
    sampling = Sampling(**{**GREEDY, "max_new_tokens": 100})
    generators = [torch.Generator() for _ in ROWS]
    stopped = next_tokens(model, ROWS, generators, sampling)
    for _ in range(20):
        next(stopped)
    assert torch.cuda.memory_allocated() > before
    stopped.close()
    del stopped
    assert torch.cuda.memory_allocated() == before


def test_other_threads_may_allocate_meanwhile():
    """A run's batches are prepared in a thread while it generates samples."""
    model = tiny_model("model/attn=gqa", randomised=True).to(DEVICE)
    usual, stop = in_passes(model), threading.Event()

    def prepare() -> None:
        stream = torch.cuda.Stream()
        size = 1
        while not stop.is_set():
            size = size % 1000 + 1
            with torch.cuda.stream(stream):
                torch.ones(size, 100).pin_memory().to(DEVICE, non_blocking=True)
            stream.synchronize()

    thread = threading.Thread(target=prepare)
    thread.start()
    try:
        for _ in range(3):
            assert written(model) == usual
    finally:
        stop.set()
        thread.join()


def test_the_state_of_random_numbers_stays():
    """Samples during a run don't change its dropout."""
    model = tiny_model("model/attn=gqa", randomised=True).to(DEVICE)
    before = torch.cuda.get_rng_state()
    written(model, temperature=1.0)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_captured_step_is_faster():
    model = tiny_model("model/attn=gqa", n_layers=12).to(DEVICE)
    seconds = {}
    for name, way in (("passes", in_passes), ("steps", written)):
        way(model, max_new_tokens=40)
        began = time.perf_counter()
        way(model, max_new_tokens=200)
        seconds[name] = time.perf_counter() - began
    print(", ".join(f"{name}: {600 / took:,.0f} tokens/s" for name, took in seconds.items()))
    assert seconds["steps"] < 0.5 * seconds["passes"]
