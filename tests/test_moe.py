"""Mixtures of experts against a loop over tokens and experts, against transformers, and in training."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.generation.generate import generate
from minllm.model.build import build_model
from minllm.model.context import PAD, Context, Layer, Position
from minllm.model.cost import cost, forward_flops
from minllm.model.mlp import moe
from minllm.model.mlp.moe import MoE
from minllm.model.parameter import initialise
from minllm.model.steps import after_step, before_step
from minllm.objective import Inputs
from minllm.objective.causal import Causal
from minllm.schema.building import build
from tests.commands import python
from tests.tiny import VOCAB, T, tiny_model, tokens

B, D, E = 3, 16, 4
OPTIONS = ["moe", "moe_sigmoid", "moe_expert_choice"]
every_option = pytest.mark.parametrize("option", OPTIONS)


def mixture(*overrides: str, option: str = "moe", sigma: float = 0.5) -> MoE:
    """Return the MLP of a configuration with every parameter drawn at `sigma`, in training."""
    sizes = [f"model.mlp.n_experts={E}", "model.mlp.expert.hidden=12"]
    cfg = compose([f"model/mlp={option}", *sizes, *overrides])
    module = build(cfg.model.mlp, D, Layer(0, 1, 2, build(cfg.norm)))
    torch.manual_seed(0)
    with torch.no_grad():
        for param in module.parameters():
            param.normal_(0, sigma)
    return module


def context(rows: int = B, length: int = T, segments: Tensor | None = None, counted=None) -> Context:
    positions_BT = torch.arange(length)[None]
    return Context(positions_BT, positions_BT, Position(D), segments, segments, counted)


def inputs(rows: int = B, length: int = T) -> Tensor:
    return torch.randn(rows, length, D, generator=torch.Generator().manual_seed(1))


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


def best(scores_E: Tensor, k: int) -> list[int]:
    return sorted(range(len(scores_E)), key=lambda e: -scores_E[e].item())[:k]


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


# ---- losses and balance --------------------------------------------------------------------------


def test_losses_are_their_formulas_over_the_counted_tokens():
    """f and P of Switch, the mean square of ST-MoE's logsumexp; what isn't counted, and padding, changes nothing."""
    module = mixture("model.mlp.router.balance=0.3", "model.mlp.router.z_loss=0.2")
    segments = torch.tensor([[0] * 20 + [PAD] * 4] * B)
    counted_BT = torch.rand(B, T, generator=torch.Generator().manual_seed(5)) < 0.7

    def losses(x):
        ctx = context(segments=segments, counted=counted_BT)
        module(x, ctx)
        return ctx.losses

    x = inputs()
    logits_NE = (x @ module.router.score.weight.T)[counted_BT & (segments != PAD)]
    probs_NE = logits_NE.softmax(-1)
    chosen = [best(row, 2) for row in probs_NE]
    share_E = torch.tensor([sum(e in one for one in chosen) / (2 * len(chosen)) for e in range(E)])
    balance = 0.3 * E * (share_E * probs_NE.mean(0)).sum()
    z_loss = 0.2 * logits_NE.logsumexp(-1).square().mean()
    torch.testing.assert_close(torch.stack(losses(x)), torch.stack([balance, z_loss]))

    before = losses(x)
    x[~(counted_BT & (segments != PAD))] = 9
    assert all(torch.equal(one, other) for one, other in zip(before, losses(x)))
    module.eval()
    assert losses(x) == []
    assert mixture("model.mlp.router.balance=0", "model.mlp.router.z_loss=0")(x, ctx := context()) is not None
    assert ctx.losses == []


def test_an_even_load_has_a_balance_loss_of_one_coefficient():
    module = mixture("model.mlp.router.balance=0.5", "model.mlp.router.z_loss=0", "model.mlp.top_k=4")
    module(inputs(), ctx := context())
    assert ctx.losses[0].item() == pytest.approx(0.5)


def test_the_bias_evens_the_load():
    """It starts with experts that hardly anybody prefers; nothing but the bias changes."""
    module = mixture("model.mlp.router.bias_rate=0.01", option="moe_sigmoid")
    with torch.no_grad():
        module.router.score.weight[0] += 0.5
        module.router.score.weight *= 0.5
    x = inputs() + 1
    busiest = []
    for _ in range(150):
        before_step(module)
        module(x, context())
        busiest.append(after_step(module)["router_busiest"].item())
    assert busiest[0] > 1.5 and busiest[-1] < 1.15
    assert module.router.bias_E[0] < 0


def test_the_bias_moves_by_the_load_of_the_whole_step():
    """In pieces as at once, however often the step began anew; tokens that no loss counts don't count."""
    one, other = (mixture(option="moe_sigmoid") for _ in range(2))
    x, counted_BT = inputs(), torch.ones(B, T, dtype=torch.bool)
    counted_BT[0] = False
    before_step(one)
    one(x, context(counted=counted_BT))
    load_E = one.router.load_E.clone()
    assert load_E.sum() == 2 * (B - 1) * T
    before_step(other)
    other(x, context())
    before_step(other)
    for b in range(B):
        other(x[b : b + 1], context(counted=counted_BT[b : b + 1]))
    assert torch.equal(other.router.load_E, load_E)
    after_step(one), after_step(other)
    assert torch.equal(one.router.bias_E, other.router.bias_E)
    assert torch.equal(one.router.bias_E, 0.001 * torch.sign(load_E.sum() / E - load_E))


def test_figures_are_what_the_router_did():
    model = tiny_model("model/mlp=moe", randomised=True).train()
    seen = []
    for module in model.modules():
        if isinstance(module, MoE):
            module.router.register_forward_hook(
                lambda router, args, out: seen.append((router.score(args[0]), out[1]))
            )
    before_step(model)
    model(tokens())
    figures = after_step(model)
    probs = [logits.log_softmax(-1) for logits, _ in seen]
    entropy = [-(p.exp() * p).sum(-1).mean().item() for p in probs]
    busiest = [chosen.float().mean((0, 1)).max().item() * E / 2 for _, chosen in seen]
    assert {name: figure.item() for name, figure in figures.items()} == pytest.approx(
        {"router_entropy": sum(entropy) / 2, "router_busiest": sum(busiest) / 2}, rel=1e-5
    )
    assert after_step(tiny_model()) == {}


# ---- what it costs -------------------------------------------------------------------------------


@every_option
@pytest.mark.parametrize("expert", ["swiglu", "gelu"])
def test_active_parameters_and_flops_are_those_of_a_dense_model(option, expert):
    """But for the router; an expert's width follows from the model's."""
    chosen = [f"model/mlp={option}", f"model/mlp@model.mlp.expert={expert}"]
    if option == "moe_sigmoid":
        chosen.append(f"model/mlp@model.mlp.shared={expert}")

    def costs(*words):
        model = build_model(compose(["model.dim=96", *words]), SimpleNamespace(vocab_size=VOCAB))
        return cost(model, 64)

    dense, sparse = costs(f"model/mlp={expert}"), costs(*chosen)
    router = 4 * 96 * 8
    assert sparse.params_active == pytest.approx(dense.params + router, rel=5e-3)
    assert sparse.flops_per_token == pytest.approx(dense.flops_per_token + 6 * router, rel=5e-3)
    assert sparse.params > 1.5 * sparse.params_active


@pytest.mark.parametrize("length", [1, 7, 24])
def test_flops_are_exact_where_shares_are_not_even(length):
    one, other = (forward_flops(tiny_model("model/mlp=moe", f"seed={seed}"), length) for seed in (0, 1))
    dense = tiny_model("model/mlp=swiglu")
    assert one == other
    router, mlp = (
        2 * 4 * 32,
        2 * 3 * 40 * 32,
    )  # of one token: two experts as wide as the dense MLP stand for it
    assert one - forward_flops(dense, length) == 2 * length * (router + mlp)


def test_as_a_word_of_its_own_beside_dense_layers():
    model = tiny_model("+model/mlp@model.moe=moe", "model.layout=[attn mlp,attn moe]")
    kinds = [type(module).__name__ for branch in model.branches() for module in branch.words.values()]
    assert kinds == ["Attention", "Gated", "Attention", "MoE"]
    assert cost(model, T).params_active < cost(model, T).params


# ---- training ------------------------------------------------------------------------------------


def test_in_one_graph_it_learns_the_same(option="moe_sigmoid"):  # whose router also moves a bias in each step
    """What is compiled is the graph, with its gradient; test_training.py compiles one to machine code."""
    model = tiny_model(f"model/mlp={option}", "model.mlp.capacity=1.0", randomised=True, n_layers=1).train()
    objective = Causal(predict_ahead=0, ahead_weight=0.3, z_loss=0)
    compiled = torch.compile(objective.loss, backend="aot_eager")
    for seed in range(3):
        batch = tokens(4, T + 1, seed=seed)
        results = []
        for loss_of in (objective.loss, compiled):
            model.zero_grad()
            before_step(model)
            loss = loss_of(model, Inputs(batch[:, :-1], batch[:, 1:], None))
            loss.backward()
            counted = [buffer.clone() for buffer in model.buffers()]
            results.append([loss.detach(), *counted, *(p.grad.clone() for p in model.parameters())])
        for one, other in zip(*results):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        after_step(model)


TINY = [
    "model.dim=16",
    "model.n_layers=2",
    "model.mlp.n_experts=4",
    "tokenizer=tales_512",
    "data.train_stories=60",
    "data.val_stories=2",
    "data.seq_len=32",
    "train.batch_size=4",
    "train.compile=false",
    "train.log_every=4",
    "train.checkpoint_every=3",
    "train.precision=fp32",
]


def metrics(run: Path) -> list[dict]:
    clock = {"seconds", "tokens_per_second", "mfu", "memory_bytes"}
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in event.items() if name not in clock} for event in events]


def trained(run_dir: Path, *words: str) -> Path:
    from minllm.config.compose import perform

    perform(compose([*TINY, *words]), run_dir)
    return run_dir


@pytest.mark.parametrize("option", ["moe", "moe_sigmoid"])
def test_a_stopped_run_goes_on_to_the_bit(option, tmp_path, monkeypatch):
    """Its figures too, though it stops between two lines of metrics; its bias is in the checkpoint."""
    words = [f"model/mlp={option}", "model.mlp.capacity=1.0", "train.steps=10"]
    whole = trained(tmp_path / "whole", *words)
    parts = tmp_path / "parts"

    import minllm.training.loop as loop

    update, taken = loop.update, []

    def stopped_after_seven(run, lr):
        taken.append(1)
        if len(taken) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(run, lr)

    monkeypatch.setattr(loop, "update", stopped_after_seven)
    with pytest.raises(SystemExit):
        trained(parts, *words)
    monkeypatch.setattr(loop, "update", update)
    from minllm.config.compose import perform

    perform(compose([f"resume={parts}", "train.steps=10"]), parts)
    assert metrics(parts) == metrics(whole)
    logged = [event for event in metrics(whole) if "train_loss" in event]
    assert len(logged) == 3
    for event in logged:
        assert 0 < event["router_entropy"] <= 1.3863 and 1 <= event["router_busiest"] <= 2
        assert 0 <= event["router_dropped"] < 1
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["params_active"] < summary["params"]


@pytest.mark.slow  # four processes
def test_what_looks_ahead_trains_and_says_so_and_does_not_generate(tmp_path):
    done = python(
        "run.py", *TINY, "model/mlp=moe_expert_choice", "train.steps=4", "train.sample_every=2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No samples will be written.") == 1 and "looks ahead" in done.stdout
    assert not list(tmp_path.glob("outputs/*/*/samples.txt"))
    summary = json.loads(next(tmp_path.glob("outputs/*/*/summary.json")).read_text())
    assert summary["state_bytes_per_sequence"] is None

    evaluated = python("run.py", "task=evaluate", "run=latest", cwd=tmp_path)
    assert evaluated.returncode == 0 and "looks ahead" in evaluated.stdout
    for task in (
        ["task=generate", "run=latest", "prompts=[Once]"],
        ["task=trace", "decode=true", "model/mlp=moe_expert_choice"],
    ):
        refused = python("run.py", *task, cwd=tmp_path)
        said = refused.stdout + refused.stderr
        assert refused.returncode == 2 and "can't generate" in said and "Traceback" not in said


def test_what_looks_ahead_refuses_to_generate():
    model = tiny_model("model/mlp=moe_expert_choice")
    tokenizer = SimpleNamespace(
        eos_id=0, vocab_size=8, encode_batch=lambda texts, bos: [[0, 1, 2] for _ in texts]
    )
    with pytest.raises(UserError, match="still to come"):
        generate(model, tokenizer, ["Once"])
    assert tiny_model("model/mlp=moe").cannot_generate is None


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
