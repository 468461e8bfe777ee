"""Megalodon has no class in transformers: its oracle is the whole model written out, a token and a key at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.model.context import Context, Position
from minllm.model.recurrent.timestep_norm import TimestepNorm
from minllm.model.scans.moving_average import moving_average
from minllm.schema.building import build
from tests.tiny import VOCAB, tiny_cfg, tiny_model, tokens

B, D, N, G = 2, 6, 3, 2


@pytest.mark.parametrize("length", [1, 4, 13, 23, 37])
def test_megalodon_is_what_it_says(length):
    """At lengths that fill neither the chunks of attention, 5, nor those of the average, 16."""
    model, batch = tiny_model("experiment=megalodon", randomised=True), tokens(1, length)
    with torch.no_grad():
        difference = (model(batch) - slow_megalodon(model.state_dict(), batch[0])).abs().max()
    assert difference < 1e-4


def test_megalodon_has_7_billion_parameters():
    cfg = compose(["experiment=megalodon"])
    with torch.device("meta"):
        model = build(cfg.model, 32_000, build(cfg.norm))
    assert sum(p.numel() for p in model.parameters()) == 7_117_381_632


def slow_megalodon(weights: dict[str, torch.Tensor], tokens_T: torch.Tensor) -> torch.Tensor:
    """Return the logits (1, T, V) of a tiny Megalodon."""
    cfg = tiny_cfg("experiment=megalodon")
    x_TD = weights["embedding"][tokens_T]
    for i in range(cfg.model.n_layers):
        rec = of(weights, f"layers.{i}.rec.words.rec.")
        mlp = of(weights, f"layers.{i}.mlp.")
        y_TD = x_TD + slow_mega(rec, x_TD, cfg.model.rec, cfg.model.pos.theta, cfg.norm.eps)
        hidden_TF = F.silu(layer_norm(of(mlp, "before."), y_TD, cfg.norm.eps) @ mlp["words.mlp.up.weight"].T)
        x_TD = x_TD + hidden_TF @ mlp["words.mlp.down.weight"].T  # to what the layer began with
    logits_TV = layer_norm(of(weights, "norm."), x_TD, cfg.norm.eps) @ weights["head.weight"].T
    assert logits_TV.shape[-1] == VOCAB
    return logits_TV[None]


def of(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}


def layer_norm(weights, x_TD, eps):
    apart_TD = x_TD - x_TD.mean(-1, keepdim=True)
    scale_T1 = (apart_TD.square().mean(-1, keepdim=True) + eps).sqrt()
    return apart_TD / scale_T1 * weights["weight"] + weights["bias"]


def rms(x, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def affine(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def slow_mega(weights, x_TD, options, theta, eps):
    T, H, K = len(x_TD), options.n_heads, options.head_dim
    x_TD = slow_timestep_norm(x_TD, weights["norm.weight"], weights["norm.bias"], options.n_groups, eps)

    alpha, delta = weights["alpha_DN"].sigmoid(), weights["delta_DN"].sigmoid()
    turns_N = 2 * math.pi * torch.arange(1, options.n_state + 1) / options.n_state
    angle = weights["theta_D"].sigmoid()[:, None] * turns_N
    q = (1 - alpha * delta) * angle.cos(), (1 - alpha * delta) * angle.sin()
    gamma = weights["gamma_DN2"] / math.sqrt(options.n_state)
    c_TD, _ = slow_average(x_TD[None], *q, alpha, gamma, weights["omega_D"])
    m_TD = rms(c_TD[0], eps) * weights["average_norm.weight"]

    z, gate = affine(weights, "z_gate", m_TD).split([H * K, H * options.value_dim], dim=-1)
    z_THK = rms(z.view(T, H, K), eps)
    gains_2HK, biases_2HK = weights["gains_2HK"].view(2, H, K), weights["biases_2HK"].view(2, H, K)
    q_THK, k_THK = (z_THK * (gains_2HK[i] + 1) / math.sqrt(K) + biases_2HK[i] for i in (0, 1))
    v_THK = F.silu(affine(weights, "value", x_TD)).view(T, H, -1)
    y_THK = torch.zeros_like(v_THK)
    for t in range(T):
        first = t - t % options.chunk
        for h in range(H):
            query = turned(q_THK[t, h], t, theta)
            scores = [query @ turned(k_THK[s, h], s, theta) for s in range(first, t + 1)]
            for s, p in zip(range(first, t + 1), torch.stack(scores).softmax(0)):
                y_THK[t, h] += p * v_THK[s, h]
    return affine(weights, "skip", m_TD) + affine(weights, "out", y_THK.flatten(1) * F.silu(gate))


def turned(x_K, t, theta):
    K, y_K = len(x_K), x_K.clone()
    for i in range(K // 2):
        angle = t / theta ** (2 * i / K)
        a, b = x_K[i], x_K[i + K // 2]
        y_K[i] = a * math.cos(angle) - b * math.sin(angle)
        y_K[i + K // 2] = b * math.cos(angle) + a * math.sin(angle)
    return y_K


def slow_timestep_norm(x_TD, weight_D, bias_D, groups, eps):
    """Take the statistics of each token from all numbers up to it, anew."""
    x_TGC = x_TD.unflatten(-1, (groups, -1))
    y_TGC = []
    for t in range(len(x_TGC)):
        seen = x_TGC[: t + 1]
        mean = seen.mean((0, 2), keepdim=True)
        var = (seen - mean).square().mean((0, 2), keepdim=True)
        y_TGC.append(((x_TGC[t : t + 1] - mean) / (var + eps).sqrt())[0])
    return torch.stack(y_TGC).flatten(1) * (1 + weight_D) + bias_D


def slow_average(x_BTD, q_re, q_im, p, gamma, omega, starts_BT=None, h0_BDN2=None):
    """One token after the other, complex numbers as pairs of real ones."""
    rows, T, _ = x_BTD.shape
    h0_BDN2 = torch.zeros(rows, *p.shape, 2) if h0_BDN2 is None else h0_BDN2
    y_BTD, last = [], []
    for b in range(rows):
        re, im = h0_BDN2[b].unbind(-1)
        for t in range(T):
            if starts_BT is not None and starts_BT[b, t] == t:
                re, im = torch.zeros_like(re), torch.zeros_like(im)
            new_re = q_re * re - q_im * im + p * x_BTD[b, t, :, None]
            re, im = new_re, q_re * im + q_im * re
            y_BTD.append((gamma[..., 0] * re - gamma[..., 1] * im).sum(-1) + omega * x_BTD[b, t])
        last.append(torch.stack([re, im], dim=-1))
    return torch.stack(y_BTD).unflatten(0, (rows, T)), torch.stack(last)


def drawn(length: int) -> list[torch.Tensor]:
    """Return the moving average's inputs: x, log r, the angles, p, γ, ω and an earlier state."""
    torch.manual_seed(length)
    decays = -torch.rand(D, N), torch.rand(D, N) * 6
    rest = torch.rand(D, N), torch.randn(D, N, 2), torch.randn(D), torch.randn(B, D, N, 2)
    return [one.requires_grad_() for one in (torch.randn(B, length, D), *decays, *rest)]


def starts(length: int) -> torch.Tensor:
    """Return where segments begin in two rows: in the middle of chunks, twice in one, and before the first token."""
    begins_BT = torch.zeros(B, length, dtype=torch.bool)
    for b, places in enumerate([(3, 5, 17, 30), (0, 16, 31, 32)]):
        begins_BT[b, [place for place in places if place < length]] = True
    return torch.where(begins_BT, torch.arange(length), -1).cummax(1).values


def near(one, other, tolerance=1e-5):
    """Hold the largest difference to a share of the largest number."""
    assert (one - other).abs().max() <= tolerance * max(1, other.abs().max())


@pytest.mark.parametrize("length", [1, 7, 16, 37])
@pytest.mark.parametrize("has_segments", [False, True])
@pytest.mark.parametrize("has_state", [False, True])
def test_the_moving_average_is_its_formula_token_by_token(length, has_segments, has_state):
    inputs, starts_BT = drawn(length), starts(length) if has_segments else None
    x, log_r, angle, p, gamma, omega, h0 = inputs
    h0 = h0 if has_state else None
    quick = moving_average(x, log_r, angle, p, gamma, omega, starts_BT, h0)
    q = log_r.exp() * angle.cos(), log_r.exp() * angle.sin()
    slow = slow_average(x, *q, p, gamma, omega, starts_BT, h0)
    weights = [torch.randn_like(one) for one in slow]
    grads = []
    for y, h in (quick, slow):
        loss = (y * weights[0]).sum() + (h * weights[1]).sum()
        grads.append(torch.autograd.grad(loss, inputs if has_state else inputs[:-1]))
    for one, other in zip((*quick, *grads[0]), (*slow, *grads[1])):
        near(one, other)


@pytest.mark.parametrize("has_segments", [False, True])
def test_the_moving_average_does_not_look_ahead(has_segments):
    x, *rest, h0 = (one.detach() for one in drawn(37))
    starts_BT, changed = starts(37) if has_segments else None, x.clone()
    changed[:, 21] += 100
    one, other = (moving_average(x, *rest, starts_BT, h0)[0] for x in (x, changed))
    assert torch.equal(one[:, :21], other[:, :21]) and not torch.equal(one[:, 21], other[:, 21])


def context(positions_BT: torch.Tensor, segments_BT: torch.Tensor | None, past: int = 0) -> Context:
    return Context(positions_BT[:, past:], positions_BT, Position(D), segments_BT, past=past)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_norm_over_time_is_its_formula(offset):
    """With segments, and in two passes that a state connects; also where the mean is large."""
    torch.manual_seed(0)
    norm = TimestepNorm(D, G, eps=1e-5)
    for param in norm.parameters():
        torch.nn.init.normal_(param)
    x = (torch.randn(1, 40, D) + offset).requires_grad_()
    inputs = [x, norm.weight, norm.bias]
    parts = x[0].split([23, 17])
    expected = torch.cat([slow_timestep_norm(part, norm.weight, norm.bias, G, 1e-5) for part in parts])
    weights = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    positions_BT = torch.cat([torch.arange(23), torch.arange(17)])[None]
    segments_BT = (torch.arange(40) >= 23).long()[None]

    y = norm(x, context(positions_BT, segments_BT))[0]
    tolerance = 1e-5 * max(1, offset)  # numbers around 30 have fewer digits behind the point
    near(y, expected, tolerance)
    for one, other in zip(torch.autograd.grad((y * weights).sum(), inputs), expected_grads):
        near(one, other, tolerance)

    state, ys = norm.init_state(1, device="cpu"), []
    for first, end in ((0, 9), (9, 10), (10, 31), (31, 40)):
        ctx = context(positions_BT[:, :end], segments_BT[:, first:end], past=first)
        ys.append(norm(x[:, first:end], ctx, state))
    near(torch.cat(ys, dim=1)[0], expected, tolerance)


def test_decoding_stays_what_it_is_over_hundreds_of_steps():
    model, batch = tiny_model("experiment=megalodon", randomised=True), tokens(2, 520)
    state = model.init_state(2, 520)
    with torch.no_grad():
        steps = [model(batch[:, :20], state=state)]
        steps += [model(batch[:, t : t + 1], state=state) for t in range(20, 520)]
        near(torch.cat(steps, dim=1), model(batch), 1e-4)


def test_a_state_does_not_grow_with_the_text():
    model = tiny_model("experiment=megalodon")
    assert model.init_state(1, 256).nbytes == model.init_state(1, 2048).nbytes
    assert compose(["model/rec=mega"]).model.rec.chunk <= 256


def test_packed_rows_longer_than_a_chunk_give_what_documents_give_alone():
    """Documents that begin anywhere in the row's chunks, shorter and longer ones than these."""
    model, batch, lengths = (
        tiny_model("experiment=megalodon", randomised=True),
        tokens(1, 60),
        [3, 17, 1, 12, 27],
    )
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    with torch.no_grad():
        alone = [model(part) for part in batch.split(lengths, dim=1)]
        near(model(batch, segments), torch.cat(alone, dim=1))


@pytest.mark.parametrize("pos", ["alibi", "t5", "none", "rope_yarn"])
def test_positions_reach_the_attention(pos):
    model, batch = tiny_model("model/rec=mega", f"model/pos={pos}", randomised=True), tokens(2, 23)
    state = model.init_state(2, 23)
    with torch.no_grad():
        steps = torch.cat([model(batch[:, t : t + 1], state=state) for t in range(23)], dim=1)
        near(steps, model(batch), 2e-5)
        if pos == "t5":
            model.position.weight_UH += torch.arange(8)[:, None]
            assert not torch.allclose(steps, model(batch), atol=1e-3)


def test_two_hops_are_their_formula():
    """Three branches: both MLPs add to what the layer began with."""
    model = tiny_model("model/residual=two_hop", "model.layout=[attn mlp mlp]", randomised=True)
    batch = tokens(2, 9)
    positions_BT = torch.arange(9)[None]
    ctx = Context(positions_BT, positions_BT, model.position)
    x = model.lookup(batch, model.embedding)
    for layer in model.layers:
        attn, mlp, mlp_2 = (next(iter(branch.words.values())) for branch in layer.values())
        norms = [branch.before for branch in layer.values()]
        y = x + attn(norms[0](x), ctx)
        y = x + mlp(norms[1](y), ctx)
        x = x + mlp_2(norms[2](y), ctx)
    torch.testing.assert_close(model.logits(model.norm(x)), model(batch))


def test_what_norms_its_input_has_no_norm_before_it():
    """Alone and beside attention, which has its norm there as ever."""
    alone = tiny_model("model/rec=mega").layers[0]["rec"]
    assert alone.before is None and tiny_model("model/rec=mega").layers[0]["mlp"].before is not None
    choices = ["model/rec=mega", "model/layout=parallel", "model.layout=[attn+rec]"]
    model, batch = tiny_model(*choices, randomised=True), tokens(2, 4)
    branch = model.layers[0]["attn+rec"]
    seen = {}
    for word, module in branch.words.items():
        module.register_forward_pre_hook(lambda module, args, word=word: seen.update({word: args[0]}))
    model(batch)
    x = model.lookup(batch, model.embedding)
    assert torch.equal(seen["rec"], x) and torch.equal(seen["attn"], branch.before["attn"](x))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.rec.n_groups=5"], "model.dim=128 isn't divisible by n_groups=5"),
        (["model.rec.n_heads=3"], "set head_dim and value_dim"),
        (["model.rec.head_dim=7"], "set an even head_dim"),
    ],
)
def test_what_does_not_fit_is_refused(words, sentence):
    cfg = compose(["model/rec=mega", "model.layout=[rec mlp]", *words])
    assert OmegaConf.is_dict(cfg)
    with pytest.raises(UserError, match=sentence):
        build(cfg.model, VOCAB, build(cfg.norm))
