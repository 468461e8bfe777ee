"""What attention may be made of, each against a loop over queries and keys or against somebody else's code."""

from __future__ import annotations

import math

import pytest
import torch

from minllm.model.attention.attention import Core
from minllm.model.attention.cache import Cache, Ring
from minllm.model.attention.mask import Blocks, Dilated, Full, Strided, Window
from minllm.model.context import Context, Position
from minllm.model.kernels.attention import attend, attend_once
from minllm.model.position.bias import T5, Alibi, _slopes
from minllm.model.position.rope import NTK, Rope
from tests.tiny import tiny_model, tokens

B, H, G, T, K = 2, 4, 2, 11, 6
MASKS = [
    Full(),
    Window(window=3),
    Strided(stride=3),
    Dilated(window=3, dilation=2),
    Blocks(size=3, n_global=1),
]

PICTURES = {
    Window(window=3): ["#", "##", "###", ".###", "..###", "...###", "....###"],
    Strided(stride=3): ["#", "##", "###", "####", ".####", "..####", "#..####"],
    Dilated(window=3, dilation=2): ["#", ".#", "#.#", ".#.#", "#.#.#", ".#.#.#", "..#.#.#"],
    Blocks(size=3, n_global=1): ["#", "##", "###", "#..#", "#..##", "#..###", "#.....#"],
}


def context(segments=None, past: int = 0, length: int = T) -> Context:
    place = torch.arange(length)[None]
    return Context(place[:, past:], place, Position(8), segments, segments, past=past)


@pytest.mark.parametrize("mask", PICTURES, ids=repr)
def test_masks_are_as_they_are_drawn(mask):
    ctx = context(length=7)
    seen_TS = ctx.visible(mask, explicit=True)[0, 0]
    drawn = ["".join(".#"[int(one)] for one in row[: i + 1]) for i, row in enumerate(seen_TS)]
    assert drawn == PICTURES[mask]
    assert mask.hides(7) and not mask.hides(1)


def slow_core(q, k, v, mask, position, *, scale, softcap, sinks, weights):
    """One query and one key at a time."""
    y = torch.zeros_like(q)
    bias = position.bias(H, context(), 0)
    for b, h, t in torch.cartesian_prod(torch.arange(B), torch.arange(H), torch.arange(T)).tolist():
        seen = [s for s in range(t + 1) if mask.visible(torch.tensor(t), torch.tensor(s))]
        scores = []
        for s in seen:
            score = q[b, h, t] @ k[b, h // (H // G), s] * (scale or K**-0.5)
            score = score if softcap is None else softcap * torch.tanh(score / softcap)
            scores.append(score if bias is None else score + bias[0, h, t, s])
        scores = torch.stack(scores)
        if weights == "sigmoid":
            p = torch.sigmoid(scores - math.log(len(seen)))
        else:
            p = scores.exp() / (scores.exp().sum() + (0 if sinks is None else sinks[h].exp()))
        y[b, h, t] = sum(one * v[b, h // (H // G), s] for one, s in zip(p, seen))
    return y


@pytest.mark.parametrize("mask", MASKS, ids=repr)
@pytest.mark.parametrize("position", ["none", "alibi", "t5"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.7},
        {"softcap": 1.5},
        {"sinks": True},
        {"weights": "sigmoid"},
        {"softcap": 1.5, "sinks": True, "scale": 0.7},
    ],
    ids=str,
)
def test_attention_is_its_formula_key_by_key(mask, position, options):
    torch.manual_seed(0)
    q, k, v = torch.randn(B, H, T, K), torch.randn(B, G, T, K), torch.randn(B, G, T, K)
    made = {
        "none": Position(8),
        "alibi": Alibi(8),
        "t5": T5(8, n_heads=H, n_buckets=4, max_distance=8),
    }[position]
    core = Core(H, K, mask=lambda: mask, **options)
    for param in [*core.parameters(), *made.parameters()]:
        torch.nn.init.normal_(param)
    expected = slow_core(
        *(q, k, v, mask, made),
        scale=options.get("scale"),
        softcap=options.get("softcap"),
        sinks=core.sinks_H,
        weights=options.get("weights", "softmax"),
    )
    with torch.no_grad():
        torch.testing.assert_close(core(q, k, v, context(), made), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunks", [[11], [1] * 11, [5, 1, 1, 4], [2, 7, 2], [3, 3, 3, 1, 1]], ids=str)
@pytest.mark.parametrize("window", [1, 3, 4, 20])
def test_a_ring_gives_the_last_keys_in_order(window, chunks):
    """However many come at a time, the query of a new token finds all that its window holds."""
    keys = torch.randn(B, G, T, K)
    ring, whole = Ring([torch.zeros(B, G, window, K)]), Cache([torch.zeros(B, G, T, K)])
    past = 0
    for count in chunks:
        new = keys[:, :, past : past + count]
        place = torch.arange(past + count)[None]
        ctx = Context(place[:, past:], place, Position(K), past=past)
        (seen,), first, _ = ring.extend([new], ctx)
        (everything,), _, _ = whole.extend([new], ctx)
        assert first <= max(0, past - window + 1)
        assert torch.equal(seen, everything[:, :, first:])
        past += count
    assert ring.tensors()[0].shape[2] == window


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, B])
def test_one_query_per_head_shares_keys_as_many_do(biased, rows):
    q, k, v = (torch.randn(B, heads, length, K) for heads, length in ((H, 1), (G, T), (G, T)))
    seen = torch.randn(rows, H, 1, T) if biased else torch.rand(rows, 1, 1, T) > 0.4
    torch.testing.assert_close(attend_once(q, k, v, seen, scale=0.3), attend(q, k, v, seen, scale=0.3))


def test_a_window_keeps_a_state_of_its_own_size():
    model = tiny_model("model/layout=local_global")
    bytes_of = [
        sum(x.numel() for s in states.values() for x in s.tensors())
        for states in model.init_state(1, 24).branches
    ]
    assert bytes_of[0::2] == [2 * 2 * 8 * 5] * 5 + [2 * 2 * 8 * 24]


def test_slopes_and_buckets_are_those_of_others():
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
    from transformers.models.t5.modeling_t5 import T5Attention

    assert transformers
    for n_heads in (4, 6, 8, 12):
        theirs = -build_mpt_alibi_tensor(n_heads, 2)[:, 0, 0]  # at a distance of one
        ours = torch.tensor(_slopes(n_heads))
        assert torch.allclose(ours.sort().values, theirs.sort().values)
    ours = T5(8, n_heads=1, n_buckets=16, max_distance=40)
    torch.nn.init.normal_(ours.weight_UH)
    distance = torch.arange(100)
    buckets = T5Attention._relative_position_bucket(-distance, False, 16, 40)
    place = torch.arange(100)[None]
    ctx = Context(place[:, -1:], place, ours, past=99)
    torch.testing.assert_close(ours.bias(1, ctx, 0)[0, 0, 0].flip(0), ours.weight_UH[buckets, 0])


def test_ntk_slows_the_slowest_pair_by_its_factor_and_leaves_the_fastest():
    usual = dict(theta=10000.0, fraction=1.0, interleaved=False)
    one, other = Rope(8, **usual), NTK(8, **usual, factor=4.0)
    before, after = one.rates(16, torch.device("cpu")), other.rates(16, torch.device("cpu"))
    assert after[0] == before[0]
    assert (before[-1] / after[-1]).item() == pytest.approx(4.0, rel=1e-4)


def test_equal_ropes_share_their_turns():
    """An attention with positions of its own computes them anew only if they are other ones."""
    ctx, x = context(), torch.randn(B, H, T, 8)
    ropes = [Rope(8, theta=theta, fraction=1.0, interleaved=False) for theta in (10.0, 10.0, 20.0)]
    turned = [rope.rotate(x, ctx) for rope in ropes]
    assert torch.equal(turned[0], turned[1]) and not torch.equal(turned[0], turned[2])
    assert len(ctx._once) == 2


def test_values_are_mixed_with_the_first_layers():
    """With weights 0 and 1 each layer takes the values that the first layer has, whatever its own are."""
    model = tiny_model("model.attn.value_residual=true", randomised=True)
    last = model.layers[1]["attn"].words["attn"]
    with torch.no_grad():
        last.value_mix.copy_(torch.tensor([0.0, 1.0]))
        before = model(tokens())
        last.qkv.weight[-16:] += 1  # its own values
        assert torch.equal(model(tokens()), before)
        model.layers[0]["attn"].words["attn"].qkv.weight[-16:] += 1
        assert not torch.equal(model(tokens()), before)


def test_a_layer_without_positions_does_not_know_the_order():
    """`nope` attends without turning, whatever the model's positions are."""
    model = tiny_model("model/layout=nope", "model.layout=[nope]", randomised=True, n_layers=1)
    batch = tokens(1, 9)
    reversed_past = torch.cat([batch[:, :8].flip(1), batch[:, 8:]], dim=1)
    torch.testing.assert_close(model(batch)[:, -1], model(reversed_past)[:, -1])
    turning = tiny_model("model.layout=[attn]", randomised=True, n_layers=1)
    assert not torch.allclose(turning(batch)[:, -1], turning(reversed_past)[:, -1], atol=1e-3)


def test_a_loop_runs_the_same_weights_again():
    once, twice = tiny_model(randomised=True), tiny_model("model.loops=2", randomised=True)
    assert sum(p.numel() for p in once.parameters()) == sum(p.numel() for p in twice.parameters())
    assert twice.init_state(1, 24).nbytes == 2 * once.init_state(1, 24).nbytes
    ctx = context(length=24)
    ctx.position = twice.position
    stream = twice._embed(twice.lookup(tokens(), twice.embedding), ctx)
    for branch in [*twice.branches(), *twice.branches()]:
        stream = branch(stream, ctx)
    torch.testing.assert_close(twice.logits(twice.norm(stream)), twice(tokens()))
