"""Mixtures of experts against a loop over tokens and experts and against transformers, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.model.context import PAD, Layer
from minllm.model.mlp import moe
from minllm.model.mlp.moe import MoE
from minllm.model.parameter import initialise
from minllm.model.steps import after_step, before_step
from minllm.schema.building import build
from tests.experts import B, D, E, best, context, inputs, mixture
from tests.tiny import VOCAB, T


def by_hand(module: MoE, x_BTD: Tensor, weights_of) -> Tensor:
    """Each token, each expert: `weights_of(logits_E)` gives {expert: weight} of a token."""
    y_BTD = torch.zeros_like(x_BTD)
    for b in range(x_BTD.shape[0]):
        for t in range(x_BTD.shape[1]):
            x_D = x_BTD[b, t]
            logits_E = module.router.score.weight @ x_D
            if module.router.score.bias is not None:
                logits_E = logits_E + module.router.score.bias
            for e, weight in weights_of(logits_E).items():
                y_BTD[b, t] += weight * module.experts[e](x_D[None, None], None)[0, 0]
            if module.shared is not None:
                y_BTD[b, t] += module.shared(x_D[None, None], None)[0, 0]
    return y_BTD


def softmax_weights(logits_E: Tensor, k: int, renormalise: bool) -> dict[int, Tensor]:
    probs_E = logits_E.softmax(0)
    chosen = best(probs_E, k)
    total = sum(probs_E[e] for e in chosen) if renormalise else 1
    return {e: probs_E[e] / total for e in chosen}


# ---- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(("k", "bias"), [(2, False), (3, True), (4, False)])
def test_softmax_is_the_loop_over_tokens_and_experts(k, bias, renormalise):
    """Outputs, and the gradient of every parameter and input."""
    module = mixture(
        f"model.mlp.top_k={k}",
        f"model.mlp.router.bias={bias}",
        f"model.mlp.router.renormalise={renormalise}",
        "+model/mlp@model.mlp.shared=gelu",
        "model.mlp.shared.hidden=8",
    )
    results = []
    for compute in (
        lambda x: module(x, context()),
        lambda x: by_hand(module, x, lambda logits: softmax_weights(logits, k, renormalise)),
    ):
        module.zero_grad()
        x = inputs().requires_grad_()
        y = compute(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        results.append([y, x.grad, *(p.grad.clone() for p in module.parameters())])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_renormalising_is_the_softmax_of_the_chosen_alone():
    """So gpt-oss, whose softmax comes after the choice, needs no option."""
    module = mixture()
    reference = by_hand(
        module,
        inputs(),
        lambda logits: {e: logits[best(logits, 2)].softmax(0)[i] for i, e in enumerate(best(logits, 2))},
    )
    torch.testing.assert_close(module(inputs(), context()), reference, rtol=1e-4, atol=1e-5)


def test_sigmoid_chooses_by_the_bias_and_weighs_without_it():
    module = mixture("model.mlp.router.scale=2.5", option="moe_sigmoid")
    module.router.bias_E.copy_(torch.tensor([0.9, -0.3, 0.2, 0.0]))

    def weights(logits_E):
        scores_E = logits_E.sigmoid()
        chosen = best(scores_E + module.router.bias_E, 2)
        return {e: 2.5 * scores_E[e] / sum(scores_E[c] for c in chosen) for e in chosen}

    reference = by_hand(module, inputs(), weights)
    torch.testing.assert_close(module(inputs(), context()), reference, rtol=1e-4, atol=1e-5)
    without = mixture("model.mlp.router.scale=2.5", option="moe_sigmoid")
    assert not torch.allclose(without(inputs(), context()), reference, atol=1e-2)


@pytest.mark.parametrize("packed", [False, True])
def test_each_expert_chooses_its_best_tokens_of_each_document(packed):
    module = mixture(option="moe_expert_choice")
    segments = torch.tensor([[0] * 9 + [1] * 10 + [PAD] * 5, [5] * 3 + [7] * 21, [2] * 24])
    x, ctx = inputs(), context(segments=segments if packed else None)
    probs_BTE = (x @ module.router.score.weight.T).softmax(-1)
    expected = torch.zeros_like(x)
    for b in range(B):
        rows = segments[b].tolist() if packed else [0] * T
        for document in set(rows) - {PAD}:
            places = [t for t in range(T) if rows[t] == document]
            for e in range(E):
                ranked = sorted(places, key=lambda t: -probs_BTE[b, t, e].item())
                for t in ranked[: -(-len(places) * 2 // E)]:
                    expected[b, t] += probs_BTE[b, t, e] * module.experts[e](x[b, t][None, None], None)[0, 0]
    torch.testing.assert_close(module(x, ctx), expected, rtol=1e-4, atol=1e-5)


def test_capacity_drops_who_comes_too_late_in_a_row():
    """In training only; who is dropped depends on nothing that comes later, nor on other rows."""
    module = mixture("model.mlp.capacity=0.75", "model.mlp.router.renormalise=false")
    places, taken = 9, {}  # 0.75 · 24 · 2 / 4

    def weights(logits_E):
        count = weights.count = getattr(weights, "count", -1) + 1
        row, kept = count // T, {}
        for e, weight in softmax_weights(logits_E, 2, False).items():
            taken[row, e] = taken.get((row, e), 0) + 1
            if taken[row, e] <= places:
                kept[e] = weight
        return kept

    before_step(module)
    y = module(inputs(), context())
    torch.testing.assert_close(y, by_hand(module, inputs(), weights), rtol=1e-4, atol=1e-5)
    dropped = sum(max(0, n - places) for n in taken.values())
    assert dropped > 0
    assert after_step(module)["router_dropped"].item() == pytest.approx(dropped / (B * T * 2))
    torch.testing.assert_close(module(inputs()[:1], context()), y[:1], rtol=1e-5, atol=1e-6)

    changed = inputs()
    changed[:, 15:] = 7
    torch.testing.assert_close(module(changed, context())[:, :15], y[:, :15], rtol=1e-5, atol=1e-6)

    dropless = mixture("model.mlp.router.renormalise=false").eval()
    assert torch.equal(module.eval()(inputs(), context()), dropless(inputs(), context()))


def test_padding_meets_no_expert_and_takes_no_place():
    module = mixture("model.mlp.capacity=0.5")
    segments = torch.tensor([[PAD] * 12 + [0] * 12] * B)
    x = inputs()
    y = module(x, context(segments=segments))
    assert not y[:, :12].any()
    x[:, :12] = 3
    assert torch.equal(module(x, context(segments=segments)), y)


def test_the_router_is_computed_in_fp32():
    module = mixture().eval()
    weights, chosen = module.router(inputs(), context())
    with torch.autocast("cpu", torch.bfloat16):
        weights_16, chosen_16 = module.router(inputs(), context())
        assert module(inputs(), context()).dtype == torch.bfloat16
    assert torch.equal(weights, weights_16) and torch.equal(chosen, chosen_16)


def test_experts_see_few_numbers_of_rows_in_bf16(monkeypatch):
    """Products in bf16 are compiled for each number of rows on a CPU, which takes longer than the product."""
    module, seen = mixture(), set()
    for expert in module.experts:
        expert.register_forward_pre_hook(lambda expert, args: seen.add(args[0].shape[1]))

    def outputs() -> list[Tensor]:
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            ys = [module(inputs(4, length), context(4, length)) for length in range(100, 180, 5)]
        sum(y.float().square().sum() for y in ys).backward()
        return [*ys, *(param.grad for param in module.parameters())]

    rounded_up = outputs()
    assert len(seen) <= 6, seen
    seen.clear()
    monkeypatch.setattr(moe, "output", lambda expert, x_1RD, ctx: expert(x_1RD, ctx))
    torch.testing.assert_close(rounded_up, outputs(), rtol=0.02, atol=0.02)
    assert len(seen) > 30


@pytest.mark.parametrize("grad", [True, False])
def test_experts_that_nobody_chose_change_nothing(grad):
    """Two tokens and sixteen experts; also wide ones, whose few rows take another way."""
    cfg = compose(["model/mlp=moe", "model.mlp.n_experts=16", "model.mlp.expert.hidden=900"])
    module = build(cfg.model.mlp, 512, Layer(0, 1, 2, build(cfg.norm)))
    initialise(module, 0)
    x = torch.randn(1, 2, 512, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad):
        y = module(x, context())
        one = module(x[:, :1], context())
    torch.testing.assert_close(y[:, :1], one, rtol=1e-4, atol=1e-5)
    if grad:
        y.sum().backward()
        assert all(p.grad is not None for p in module.parameters())


# ---- transformers' blocks ------------------------------------------------------------------------


def oracle_block(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    sizes = {"hidden_size": D, "num_experts_per_tok": 2}
    if name == "mixtral":
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock as Block

        config = transformers.MixtralConfig(**sizes, intermediate_size=12, num_local_experts=E)
    elif name == "deepseek_v3":
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE as Block

        config = transformers.DeepseekV3Config(
            **{**sizes, "num_experts_per_tok": 3},
            moe_intermediate_size=12,
            n_routed_experts=8,
            n_shared_experts=1,
            n_group=4,
            topk_group=2,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
        )
    else:
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock as Block

        config = transformers.Qwen3MoeConfig(
            **sizes, moe_intermediate_size=12, num_experts=E, norm_topk_prob=False
        )
    config._experts_implementation = "eager"
    block = Block(config)
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in [*block.parameters(), *block.buffers()]:
            tensor.normal_(0, 0.4)
    return block.eval()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("mixtral", ["model/mlp=moe"]),
        ("qwen3_moe", ["model/mlp=moe", "model.mlp.router.renormalise=false"]),
        (
            "deepseek_v3",
            [
                "model/mlp=moe_sigmoid",
                "model.mlp.n_experts=8",
                "model.mlp.top_k=3",
                "model.mlp.shared.hidden=12",
                "model.mlp.router.n_groups=4",
                "model.mlp.router.top_groups=2",
                "model.mlp.router.scale=2.5",
            ],
        ),
    ],
)
def test_it_is_the_block_of_transformers(name, overrides):
    theirs, ours = oracle_block(name), mixture(*overrides).eval()
    weights = theirs.state_dict()
    named = {"router.score.weight": weights["gate.weight"]}
    if "gate.e_score_correction_bias" in weights:
        named["router.bias_E"] = weights["gate.e_score_correction_bias"]
        shared = [weights[f"shared_experts.{one}_proj.weight"] for one in ("gate", "up")]
        named["shared.gate_up.weight"] = torch.cat(shared)
        named["shared.down.weight"] = weights["shared_experts.down_proj.weight"]
    for e in range(ours.n_experts):
        named[f"experts.{e}.gate_up.weight"] = weights["experts.gate_up_proj"][e]
        named[f"experts.{e}.down.weight"] = weights["experts.down_proj"][e]
    ours.load_state_dict(named)
    with torch.no_grad():
        expected = theirs(inputs())
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(inputs(), context()), expected, rtol=1e-4, atol=1e-5)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model/mlp=moe", "model.mlp.top_k=9"], "set top_k=8 or less"),
        (["model/mlp=moe", "model.mlp.top_k=1"], "renormalise=false"),
        (["model/mlp=moe", "model/mlp@model.mlp.expert=moe"], "can't be a mixture"),
        (["model/mlp=moe_sigmoid", "model.mlp.router.n_groups=3"], "multiple"),
        (
            [
                "model/mlp=moe_sigmoid",
                "model.mlp.top_k=3",
                "model.mlp.router.n_groups=4",
                "model.mlp.router.top_groups=1",
            ],
            "top_groups=1 of n_groups=4",
        ),
        (["model/mlp=moe", "model.mlp.expert=gelu"], "model/mlp@model.mlp.expert=gelu"),
        (["model/mlp=moe", "model.mlp.topk=3"], "Did you mean 'top_k'"),
        (["model/mlp=moe", "model.mlp.capacity=0"], "above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(overrides, words):
    with pytest.raises(UserError) as refused:
        build_model(compose(overrides), SimpleNamespace(vocab_size=VOCAB))
    assert words in str(refused.value)
