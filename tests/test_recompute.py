"""Activation checkpointing: `train.recompute` changes memory and time, but no result."""

import gc
import weakref

import pytest
import torch

from minllm.model.stack import Stack, set_recompute
from minllm.model.steps import after_step, before_step
from minllm.objective import Inputs
from minllm.objective.causal import Causal
from tests.tiny import VOCAB, T, tiny_model, tokens

MODELS = {
    "transformer": [],
    "two layers of three branches": ["model/layout=griffin", "model/rec=rglru"],
    "parallel branches": ["model/layout=parallel", "norm=sandwich"],
    "loops": ["model.loops=2"],
    "value residual": ["model.attn.value_residual=true"],
    "scores from a shared bias": ["model/pos=t5"],
    "alibi": ["model/pos=alibi", "model/attn=differential"],
    "two hops": ["model/residual=two_hop"],
    "hyper-connections": ["model/residual=hyper"],
    "the embedded token": ["model/residual=scaled", "model.residual.inject=true"],
    "experts": ["model/mlp=moe"],
    "experts in loops": ["model/mlp=moe", "model.loops=2"],
    "experts with a capacity": ["model/mlp=moe_sigmoid", "model.mlp.capacity=1.0"],
    "mamba": ["model/layout=mamba", "model/rec=mamba"],
    "gated deltanet": ["model/layout=recurrent", "model/rec=gated_deltanet"],
    "mega": ["model/layout=recurrent", "model/rec=mega"],
    "latent attention": ["model/attn=mla"],
    "an encoder": ["model/encoder=same", "model/layout=decoder", "objective=seq2seq"],
    "tokens further ahead": ["objective.predict_ahead=2", "model/mlp=moe"],
}


def step(model, recompute, segments=None, dropout=0.0):
    """Return the loss, the gradients and the modules' statistics of a step."""
    set_recompute(model, recompute)
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = dropout
    model.train().zero_grad()
    before_step(model)
    torch.manual_seed(5)
    tokens_BT = torch.randint(VOCAB, (2, T), generator=torch.Generator().manual_seed(1))
    losses, ahead = [], []
    memory_BSD = model.example_memory(tokens_BT.flip(1), losses=losses)
    x_BTD = model.hidden(tokens_BT, segments, memory_BSD=memory_BSD, losses=losses, ahead=ahead)
    heads = [model.logits(x) for x in (x_BTD, *ahead)]
    loss = sum(logits.float().square().mean() for logits in heads) + sum(losses)
    loss.backward()
    random = torch.rand(1).item()  # the generator goes on from where it would be
    gradients = {name: param.grad.clone() for name, param in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    metrics = after_step(model)
    for name, buffer in model.named_buffers():  # a router adjusts its biases after a step
        buffer.copy_(buffers[name])
    return loss.item(), len(losses), random, gradients, buffers, metrics


def assert_same(one, other):
    assert one[:3] == other[:3]
    for these, those in zip(one[3:], other[3:]):
        assert these.keys() == those.keys()
        for name in these:
            assert torch.equal(these[name], those[name]), name


@pytest.mark.parametrize("choices", MODELS.values(), ids=MODELS)
def test_recomputing_changes_no_bit_of_a_step(choices):
    model = tiny_model(*choices)
    segments = torch.arange(T).expand(2, T) // 9
    for dropout, packed in ((0.0, None), (0.25, segments)):
        plain = step(model, "none", packed, dropout)
        for recompute in ("branches", "layers"):
            assert_same(step(model, recompute, packed, dropout), plain)


def test_bf16_gives_the_same_too():
    model = tiny_model("model/mlp=moe")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(step(model, "layers"), step(model, "none"))


def kept_bytes(model, recompute):
    """Return the bytes that the forward pass keeps for the backward pass."""
    set_recompute(model, recompute)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        x_BTD = model.hidden(torch.zeros(4, T, dtype=torch.int64))
    del x_BTD
    return sum(kept.values())


def test_a_forward_pass_keeps_nothing_of_what_is_recomputed():
    model = tiny_model("model.n_layers=4").train()
    plain, branches, layers = (kept_bytes(model, recompute) for recompute in ("none", "branches", "layers"))
    assert layers <= branches < plain / 4


def test_each_branch_runs_twice_in_training_and_once_otherwise():
    model, runs = tiny_model().train(), []
    for branch in model.branches():
        branch.register_forward_pre_hook(lambda *_: runs.append(1))
    tokens_BT = torch.zeros(2, T, dtype=torch.int64)
    for recompute, times in (("none", 1), ("branches", 2), ("layers", 2)):
        set_recompute(model, recompute)
        runs.clear()
        model(tokens_BT).sum().backward()
        assert len(runs) == times * len(model.branches())
        runs.clear()
        with torch.no_grad():
            model(tokens_BT)
        model.eval()
        model(tokens_BT)
        model.train()
        assert len(runs) == 2 * len(model.branches())


@pytest.mark.parametrize(
    "choices", [["model/pos=t5"], ["model.attn.value_residual=true"], ["model/mlp=moe"]], ids=str
)
def test_a_forward_pass_without_a_backward_pass_frees_its_memory(choices):
    """As when memory runs out in the middle of one."""
    model, streams = tiny_model(*choices).train(), []
    for branch in model.branches():
        branch.register_forward_hook(lambda _, args, out: streams.append(weakref.ref(out)))
    set_recompute(model, "layers")
    losses = []
    x_BTD = model.hidden(torch.zeros(2, T, dtype=torch.int64), losses=losses)
    assert any(stream() is not None for stream in streams)
    del x_BTD, losses
    gc.collect()
    assert all(stream() is None for stream in streams)


def test_an_encoder_is_recomputed_too():
    model = tiny_model(*MODELS["an encoder"])
    set_recompute(model, "layers")
    assert [module.recompute for module in model.modules() if isinstance(module, Stack)] == ["layers"] * 2


def test_compiled_it_has_the_same_gradients_and_dropout():
    model = tiny_model("model/pos=t5", randomised=True, n_layers=1).train()
    objective = Causal(predict_ahead=0, ahead_weight=0.3, z_loss=0)
    rows = tokens(2, T + 1)
    for branch in model.branches():
        branch.dropout = 0.25

    def gradients(loss_of):
        model.zero_grad()
        torch.manual_seed(0)
        loss_of(model, Inputs(rows[:, :-1], rows[:, 1:])).backward()
        return [param.grad.clone() for param in model.parameters()]

    plain = gradients(objective.loss)
    set_recompute(model, "layers")
    compiled = torch.compile(objective.loss, backend="aot_eager")  # test_training.py compiles to machine code
    for one, other in zip(gradients(compiled), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
