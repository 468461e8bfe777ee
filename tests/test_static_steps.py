"""Static steps, as a GPU replays them, against usual passes: here both on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minllm.errors import UserError
from minllm.generation.decoding import Steps
from minllm.generation.generate import next_tokens
from minllm.generation.sampler import Sampling
from minllm.model.attention.attention import Attention
from minllm.model.attention.mask import Full
from minllm.model.context import PAD, PAST, Sight
from minllm.model.static import StaticState, has_static_steps
from tests.tiny import random_model, tiny_model, tokens

ROWS = [row[:length].tolist() for row, length in zip(tokens(3, 9), (5, 9, 7))]
SAMPLING = Sampling(temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, max_new_tokens=17, seed=0)

MIXERS = ["deltanet", "gated_deltanet", "gla", "mamba", "mamba2", "mega", "min_gru", "rglru", "rnn"]
MODELS = [
    (
        "model/layout=recurrent",
        "model/rec=conv",
        f"model.layout=[rec,{','.join(MIXERS)}]",
        *(f"+model/rec@model.{mixer}={mixer}" for mixer in MIXERS),
    ),
    (
        "model.layout=[attn+a2,a3 a4]",
        *(f"+model/attn@model.{m}" for m in ("a2=mqa", "a3=mla", "a4=differential")),
    ),
    ("model/attn=gqa", "model.attn.qk_norm=head", "model/attn/mask=window", "model/pos=rope_yarn"),
    ("model.attn.softcap=2", "model.softcap=5", "model/attn/mask=strided", "model.attn.qk_norm=full"),
    (
        "model.attn.sinks=true",
        "model.attn.output_gate=true",
        "model/attn/mask=dilated",
        "model/pos=sinusoidal",
    ),
    ("model.attn.weights=sigmoid", "model/attn/mask=blocks", "model.attn.mask.n_global=0"),
    ("model.attn.value_residual=true", "model/pos=alibi", "model/attn/mask=window", "model/residual=two_hop"),
    ("model/attn=mqa", "model/pos=t5", "model/attn/mask=blocks", "model/residual=hyper"),
    ("model/attn=mla", "model/attn/mask=window", "model/pos=alibi"),
    ("model/attn=differential", "model/pos=t5", "model/attn/mask=dilated"),
    ("model/layout=looped", "model/pos=learned", "model/attn/mask=window"),
    ("model/layout=decoder", "model/encoder=same", "model/pos=learned"),
]


class Recorded:
    """Draws as `SAMPLING` does, and keeps the logits."""

    max_new_tokens = SAMPLING.max_new_tokens

    def __init__(self):
        self.logits = []

    def draw(self, logits_BV, uniforms_B):
        self.logits.append(logits_BV.clone())
        return SAMPLING.draw(logits_BV, uniforms_B)


@pytest.fixture
def compare(monkeypatch):
    """Return a function that decodes in both ways, and compares the tokens, and the logits where there is a token."""

    def compare(model, *, sight=PAST, sources=None, within=1e-5, rows=ROWS):
        results = []
        for pays in (False, True):
            monkeypatch.setattr(Steps, "pay", lambda passes, new_tokens, pays=pays: pays)
            sampling, generators = Recorded(), [torch.Generator().manual_seed(i) for i in range(len(rows))]
            steps = [*next_tokens(model, rows, generators, sampling, sight=sight, sources=sources)]
            results.append((steps, torch.stack(sampling.logits, dim=1)))
        (usual, usual_BTV), (static, static_BTV) = results
        assert static == usual
        written_BT = torch.tensor([[token is not None for token in step] for step in usual]).T
        torch.testing.assert_close(static_BTV[written_BT], usual_BTV[written_BT], rtol=within, atol=within)
        return usual

    return compare


@pytest.mark.parametrize("choices", MODELS, ids=lambda choices: " ".join(choices)[:60])
def test_decoding_is_alike(choices, compare):
    model = tiny_model(*choices, randomised=True)
    assert has_static_steps(model)
    written = compare(model, sources=ROWS[::-1] if model.encoder else None)
    # rows end where their learned positions do
    counts = [sum(token is not None for token in row) for row in zip(*written)]
    room = model.position.max_positions or 99
    assert counts == [min(SAMPLING.max_new_tokens, room + 1 - len(row)) for row in ROWS]


def test_a_prompt_that_sees_itself_whole_is_continued_alike(compare):
    compare(random_model("model/pos=t5"), sight=Sight(sees_all=True))


def test_one_row_without_padding_decodes_alike(compare):
    compare(random_model("model/attn/mask=window"), rows=ROWS[:1])


def test_static_steps_under_autocast(compare, monkeypatch):
    """In bf16 only roughly alike, so the same tokens are drawn whatever the logits."""
    monkeypatch.setattr(Recorded, "draw", lambda self, x, u: [self.logits.append(x.float()), u.long() + 7][1])
    model = tiny_model("model/layout=griffin", "model/rec=mamba2", "model/attn/mask=window", randomised=True)
    with torch.autocast("cpu", torch.bfloat16):
        compare(model, within=0.1)


def test_a_state_continues_segments_of_any_number():
    """The first pass may have had several documents in a row."""
    model, batch = random_model("model/rec=rglru", "model/attn/mask=window"), tokens(2, 14)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [PAD, PAD, 3, 3, 3, 3, 3, 3]])
    with torch.no_grad():
        usual, first = model.init_state(2, 14), model.init_state(2, 14)
        for state in (usual, first):
            model.hidden(batch[:, :8], segments, state)
        static = StaticState(first, 2, batch.device)
        for t in range(8, 14):
            token_B1 = batch[:, t : t + 1]
            torch.testing.assert_close(
                model.step(token_B1, static), model.hidden(token_B1, None, usual), rtol=1e-5, atol=1e-5
            )


def test_mixtures_of_experts_are_decoded_in_passes():
    assert not has_static_steps(tiny_model("model/mlp=moe"))


class Own(Attention):
    """Somebody's own attention, which may do anything."""


class Declared(Own):
    static_steps = True


class Replacing(Declared):
    static_steps = True

    def forward(self, x_BTD, ctx, state=None):
        y_BTD = super().forward(x_BTD, ctx, state)
        state.held = [held.clone() for held in state.held]
        return y_BTD


def with_attention(kind):
    model = tiny_model("model/attn=mha", randomised=True)
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = kind
    return model


def test_modules_of_others_must_say_that_they_can():
    assert has_static_steps(with_attention(Attention)) and has_static_steps(with_attention(Declared))
    assert not has_static_steps(with_attention(Own))
    assert not has_static_steps(with_attention(type("Heir", (Declared,), {})))


def test_a_mask_of_others_is_held_to_the_same():
    class Odd(Full):
        """Somebody's own mask."""

    model = tiny_model("model/attn=mha")
    model.layers[0]["attn"].words["attn"].core.mask = Odd()
    assert not has_static_steps(model)


def test_a_state_with_new_tensors_is_refused(compare):
    with pytest.raises(UserError, match="copy_"):
        compare(with_attention(Replacing))


def test_a_cpu_takes_passes(monkeypatch):
    monkeypatch.setattr(Steps, "__init__", None)
    model, sampling = random_model("model/attn=gqa"), replace(SAMPLING, max_new_tokens=40)
    assert len([*next_tokens(model, ROWS, [torch.Generator() for _ in ROWS], sampling)]) == 40
