"""Mixtures of experts in training: their losses, the balance of their load, what they cost, and whole runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.generation.generate import generate
from minllm.model.build import build_model
from minllm.model.context import PAD
from minllm.model.cost import cost, forward_flops
from minllm.model.mlp.moe import MoE
from minllm.model.steps import after_step, before_step
from minllm.objective import Inputs
from minllm.objective.causal import Causal
from tests.commands import python
from tests.experts import B, E, best, context, inputs, mixture
from tests.tiny import VOCAB, T, tiny_model, tokens, unjudged

OPTIONS = ["moe", "moe_sigmoid", "moe_expert_choice"]
every_option = pytest.mark.parametrize("option", OPTIONS)


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
        cfg = unjudged("model.dim=96", *words)
        return cost(build_model(cfg, SimpleNamespace(vocab_size=VOCAB)), 64)

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


def test_compiled_it_learns_the_same(option="moe_sigmoid"):  # whose router also moves a bias in each step
    """The graphs around the choice of experts, with their gradients; test_training.py compiles to machine code."""
    choices = [f"model/mlp={option}", "model.mlp.capacity=1.0", "model.layout=[mlp]"]
    model = tiny_model(*choices, randomised=True, n_layers=1).train()
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

    perform(unjudged(*TINY, *words), run_dir)
    return run_dir


@pytest.mark.parametrize("option", ["moe", "moe_sigmoid"])
def test_a_stopped_run_goes_on_to_the_bit(option, tmp_path, monkeypatch):
    """Its figures too, though it stops between two lines of metrics; its bias is in the checkpoint."""
    words = [f"model/mlp={option}", "model.mlp.capacity=1.0", "train.steps=10", "sample.max_new_tokens=4"]
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
