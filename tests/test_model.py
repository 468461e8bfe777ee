"""The parts of the model against slow and obviously right references."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.model.kernels.attention import attend, attend_in_blocks
from minllm.model.kernels.linear import linear
from minllm.model.norm import ScaleNorm
from minllm.model.parameter import Linear, SplitLinear, initialise
from minllm.objective import Inputs, cross_entropy
from minllm.objective.causal import Causal, _one_later
from minllm.objective.cross_entropy import head_cross_entropy
from tests.tiny import VOCAB, tiny_model, tokens


def qkv(B=2, H=6, G=2, T=13, K=8):
    torch.manual_seed(0)
    shapes = (B, H, T, K), (B, G, T, K), (B, G, T, K)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def slow_causal_attention(q_BHTK, k_BGTK, v_BGTK):
    """One query at a time, as the formula says."""
    B, H, T, K = q_BHTK.shape
    y_BHTK = torch.zeros(B, H, T, K)
    for b in range(B):
        for h in range(H):
            g = h // (H // k_BGTK.shape[1])
            for t in range(T):
                scores = k_BGTK[b, g, : t + 1] @ q_BHTK[b, h, t] / K**0.5
                y_BHTK[b, h, t] = scores.softmax(0) @ v_BGTK[b, g, : t + 1]
    return y_BHTK


@pytest.mark.parametrize("length", [2, 3, 8, 13])
@pytest.mark.parametrize("heads", [(6, 6), (6, 2), (6, 1)])
def test_attention_is_the_formula_and_has_its_gradient(heads, length):
    """Also as torch computes it, where no gradient is wanted."""
    weights = torch.randn(2, 6, length, 8)
    results = []
    for core in (attend, attend_in_blocks, slow_causal_attention):
        inputs = qkv(*(2, *heads, length))
        y = core(*inputs)
        (y * weights).sum().backward()
        results.append([y.detach(), *(x.grad for x in inputs)])
    with torch.no_grad():
        torch.testing.assert_close(attend(*inputs), results[-1][0])
    for result in results[:-1]:
        for one, other in zip(result, results[-1]):
            torch.testing.assert_close(one, other)


def test_attention_in_blocks_scales_scores_and_casts_as_autocast_does():
    q, k, v = qkv()
    torch.testing.assert_close(attend_in_blocks(q, k, v, scale=0.3), attend_in_blocks(q * 0.3 * 8**0.5, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        assert attend_in_blocks(q, k, v.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [(1,), (1, 1), (8,), (4, 2), (9,)])
def test_few_rows_have_the_product_that_many_have(rows):
    x, weight, bias = torch.randn(*rows, 512), torch.randn(600, 512), torch.randn(600)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-4, atol=1e-3)


def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch):
    asked = []
    chunk = cross_entropy._chunk
    monkeypatch.setattr(cross_entropy, "_chunk", lambda *args: asked.append(args[7]) or chunk(*args))
    x, weight, targets = torch.randn(4, 8), torch.nn.Parameter(torch.randn(VOCAB, 8)), torch.arange(4)
    with torch.no_grad():
        head_cross_entropy(x, weight, targets)
    head_cross_entropy(x, weight, targets)
    assert asked == [False, True]


CAUSAL = Causal(predict_ahead=0, ahead_weight=0.3, z_loss=0)


def test_what_branches_add_to_the_losses_counts_in_training_only(monkeypatch):
    """So much for each counted target, whatever the loss itself is."""
    model, batch = tiny_model(), tokens()
    targets = batch.masked_fill(torch.arange(batch.shape[1]) < 2, -100)
    plain = CAUSAL.loss(model, Inputs(batch, targets, None))
    branch = model.branches()[0]
    forward = branch.forward
    monkeypatch.setattr(
        branch,
        "forward",
        lambda x, ctx, states: ctx.losses.append(torch.tensor(2.0)) or forward(x, ctx, states),
    )
    assert CAUSAL.loss(model, Inputs(batch, targets, None)).item() == pytest.approx(plain.item())
    loss = CAUSAL.loss(model.train(), Inputs(batch, targets, None))
    assert loss.item() == pytest.approx(plain.item() + 2 * (targets != -100).sum().item())


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("counted", ["all", "some", "one"])
@pytest.mark.parametrize("biased", [False, True])
def test_cross_entropy_with_the_head_is_cross_entropy(softcap, counted, biased, z_loss):
    """More rows than one chunk, and a last chunk that isn't full."""
    torch.manual_seed(0)
    inputs = [torch.randn(700, 16), torch.randn(VOCAB, 16), *([torch.randn(VOCAB)] if biased else [])]
    targets = torch.randint(0, VOCAB, (700,))
    if counted != "all":
        targets[torch.arange(700) % 700 != 3 if counted == "one" else torch.arange(700) % 3 == 0] = -100

    def ours(x, weight, bias=None):
        return head_cross_entropy(x, weight, targets, bias, softcap=softcap, z_loss=z_loss)

    def reference(x, weight, bias=0):
        logits = x @ weight.T + bias
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        log_z = logits.logsumexp(-1)[targets != -100]
        return F.cross_entropy(logits, targets, reduction="sum") + z_loss * log_z.square().sum()

    results = []
    for loss_of in (ours, reference):
        leaves = [one.clone().requires_grad_() for one in inputs]
        loss = loss_of(*leaves)
        (loss / 7).backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_arms_start_with_the_weights_they_share():
    """Same seed: what has the same path and shape is the same, whatever else differs; another seed shares nothing."""
    one, other = (
        tiny_model("model/attn=mha").state_dict(),
        tiny_model("model/attn=mqa", "norm=post").state_dict(),
    )
    shared = [name for name in one if name in other and one[name].shape == other[name].shape]
    assert "embedding" in shared and "layers.1.mlp.words.mlp.gate_up.weight" in shared
    assert all(torch.equal(one[name], other[name]) for name in shared)
    queries = "layers.0.attn.words.attn.qkv.weight"
    assert one[queries].shape != other[queries].shape
    assert torch.equal(one[queries][:32], other[queries][:32])


def test_seeds_draw_different_weights():
    model = SplitLinear(8, [4, 4], stream="reads")
    initialise(model, 0)
    first = model.weight.clone()
    assert not torch.equal(first[:4], first[4:])
    initialise(model, 1)
    assert not torch.equal(first, model.weight)


def test_a_projection_keeps_the_variance_of_its_input():
    linear = Linear(512, 512, stream="reads")
    initialise(linear, 0)
    assert linear(torch.randn(1000, 512)).std().item() == pytest.approx(1, rel=0.1)


def test_every_parameter_has_a_role():
    for param in tiny_model("experiment=gpt2").parameters():
        assert param.role.kind in ("matrix", "vector", "embedding")
        assert (param.role.kind == "vector") == (param.ndim == 1)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (("model.layout=[attn mpl]",), "'mpl', but the model has no such branch. Did you mean 'mlp'"),
        (("model.layout=[rec mlp]",), "model/rec=<option>"),
        (("model.layout=['']",), "empty layer"),
        (("model.layout=[]",), "empty"),
        (("model.attn.n_kv_heads=3",), "multiple of n_kv_heads"),
        (("model.attn.head_dim=7",), "even head_dim"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(choices, words):
    from types import SimpleNamespace

    from minllm.config.compose import compose
    from minllm.model.build import build_model

    with pytest.raises(UserError) as refused:
        build_model(compose(choices), SimpleNamespace(vocab_size=VOCAB))
    assert words in str(refused.value)


def test_dropout_is_for_training_only():
    model, batch = tiny_model(), tokens()
    model.dropout = 0.5
    for branch in model.branches():
        branch.dropout = 0.5
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))


def test_softcap_bounds_the_logits():
    model, batch = tiny_model("model.softcap=0.01", randomised=True), tokens()
    assert model(batch).abs().max() <= 0.01


@pytest.mark.parametrize("residual", ["scaled", "hyper"])
def test_residuals_that_begin_as_the_plain_one(residual):
    """Their learned numbers begin so that nothing is different, with norms and without."""
    for norm in ("norm=pre", "norm=none"):
        plain, other = tiny_model(norm), tiny_model(norm, f"model/residual={residual}")
        torch.testing.assert_close(other(tokens()), plain(tokens()), rtol=0, atol=1e-5)


def test_rezero_begins_as_the_identity():
    model = tiny_model("model/residual=rezero")
    torch.testing.assert_close(model.hidden(tokens()), model.norm(model.lookup(tokens(), model.embedding)))


def test_layerscale_and_deepnorm_weigh_the_branch_and_the_stream():
    stream, y = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    small = tiny_model("model/residual=layerscale", "model.residual.init=0.25").branches()[0].residual
    torch.testing.assert_close(small.write(stream, y, None), stream + 0.25 * y)
    deep = tiny_model("model/residual=deepnorm", "norm=post").branches()[0].residual  # four branches
    torch.testing.assert_close(deep.write(stream, y, None), 4**0.25 * stream + y)


@pytest.mark.parametrize("packed", [False, True])
def test_tokens_further_ahead_are_learnt_within_their_text_only(packed):
    """Head i learns the token i places after the next one, where there is one; a slow count of which."""
    batch = torch.arange(1, 13)[None].repeat(2, 1)
    tokens_BT, targets_BT = batch[:, :-1], batch[:, 1:].clone()
    targets_BT[0, 8:] = -100  # padding
    segments_BT = torch.tensor([[0] * 11, [0] * 4 + [1] * 7]) if packed else None
    later_BT = targets_BT
    for i in (1, 2, 3):
        later_BT = _one_later(later_BT, segments_BT)
        for b in range(2):
            for t in range(11):
                inside = t + i < 11 and all(targets_BT[b, t : t + i + 1] != -100)
                inside = inside and (not packed or segments_BT[b, t] == segments_BT[b, t + i])
                expected = targets_BT[b, t + i].item() if inside else -100
                assert later_BT[b, t].item() == expected
    assert tokens_BT.shape == later_BT.shape


def test_what_is_learnt_further_ahead_counts_in_training_only():
    model, batch = tiny_model("objective.predict_ahead=2", randomised=True), tokens(2, 13)
    plain = CAUSAL.loss(model, Inputs(batch[:, :-1], batch[:, 1:], None))
    ahead = Causal(predict_ahead=2, ahead_weight=0.5, z_loss=0)
    torch.testing.assert_close(ahead.loss(model, Inputs(batch[:, :-1], batch[:, 1:], None)), plain)
    found: list[torch.Tensor] = []
    model.hidden(batch[:, :-1], ahead=found)
    expected = plain
    for i, x_BTD in enumerate(found, start=1):
        logits = model.logits(x_BTD[:, : 12 - i]).flatten(0, 1)
        expected = expected + 0.5 * F.cross_entropy(logits, batch[:, 1 + i :].flatten(), reduction="sum")
    torch.testing.assert_close(ahead.loss(model.train(), Inputs(batch[:, :-1], batch[:, 1:], None)), expected)


def test_an_mlp_may_be_left_out():
    model = tiny_model("model/mlp=none")
    assert [list(layer) for layer in model.layers] == [["attn"], ["attn"]]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (["model.attn.sinks=true", "model.attn.weights=sigmoid"], "sigmoids share none"),
        (
            [
                "model.attn.value_residual=true",
                "model/layout=alternating",
                "model.local.value_residual=true",
                "model.local.n_kv_heads=1",
            ],
            "the same n_kv_heads",
        ),
        (["model.predict_ahead=1"], "must be the same"),
        (["model/mlp=none", "model.layout=[attn,mlp]", "objective.predict_ahead=1"], "no branch"),
        (["model.layout=[attn+]"], "with a plus between"),
        (["model/pos=rope_yarn", "model.pos.theta=1"], "more than 1"),
        (["model/pos=t5", "model.pos.n_heads=2"], "set model.pos.n_heads=4"),
    ],
    ids=str,
)
def test_combinations_that_would_mislead_are_refused(choices, words):
    with pytest.raises(UserError, match=words):
        build_model(compose([*choices, "model.dim=32"]), SimpleNamespace(vocab_size=VOCAB))


def test_both_maps_of_a_differential_head_are_biased_alike():
    """So an attention whose two maps have the same queries and keys sees nothing but their difference by λ."""
    model = tiny_model("model/attn=differential", "model/pos=alibi", randomised=True, n_layers=1)
    core, ctx_of = model.layers[0]["attn"].words["attn"].core, {}
    core.register_forward_pre_hook(lambda module, args: ctx_of.update(q=args[0], k=args[1], ctx=args[3]))
    model(tokens())
    q, k, ctx = ctx_of["q"], ctx_of["k"], ctx_of["ctx"]
    one = core(
        torch.cat([q[:, :4], q[:, :4]], 1),
        torch.cat([k[:, :2], k[:, :2]], 1),
        torch.randn(2, 2, 24, 16).repeat(1, 2, 1, 1),
        ctx,
        model.position,
    )
    assert torch.equal(one[:, :4], one[:, 4:])


def test_a_norm_of_length_adds_its_bias_as_it_is():
    norm = ScaleNorm(64, affine=False, bias=True)
    with torch.no_grad():
        norm.bias.fill_(1)
    assert torch.allclose(norm(torch.zeros(3, 64)), torch.ones(3, 64))
