"""What every option must prove, whoever wrote it: each YAML of the model's groups is found and held to the same laws.

A new option needs no test of its own to be tested here.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from allpairspy import AllPairs
from torch.utils._python_dispatch import TorchDispatchMode

from minllm import tracing
from minllm.data.batches import IGNORED, Batch
from minllm.errors import UserError
from minllm.laws.laws import check_laws
from minllm.model.context import PAD
from minllm.model.cost import cost, forward_flops, state_bytes
from minllm.model.lm import LM
from minllm.model.norm import Norms
from minllm.model.static import StaticState, has_static_steps
from minllm.objective import Inputs
from minllm.objective.noise import Noise
from minllm.schema.building import build
from minllm.schema.checking import literal_words, options_of
from minllm.tasks.describe import column
from minllm.tracing.tree import Step
from minllm.training import checkpoints
from tests.pairs import is_refused
from tests.tiny import (
    OBJECTIVE,
    VOCAB,
    T,
    completed,
    go_together,
    groups_of_model,
    options,
    random_model,
    tiny_cfg,
    tiny_model,
    tokens,
)

GROUPS = groups_of_model()
SINGLES = [completed(choice) for group in GROUPS for choice in options(group)]
VALUES = [
    *[(f"norm.kind={kind}",) for kind in literal_words(options_of(Norms)["kind"].annotation)],
    *[(f"norm.{name}=true",) for name in ("bias", "embedding")],
    ("norm.affine=false",),
    ("norm.shared=false", "model/layout=parallel"),
    *[(f"model.attn.qk_norm={over}",) for over in ("head", "full")],
    *[
        (f"model.attn.{name}=true",)
        for name in ("sinks", "output_gate", "value_residual", "qkv_bias", "out_bias")
    ],
    ("model.attn.softcap=2.0",),
    ("model.attn.weights=sigmoid",),
    ("model.attn.scale=0.5",),
    ("model.attn.sinks=true", "model.attn.softcap=2.0", "model/pos=alibi", "model/attn/mask=window"),
    ("model/attn=local", "model.attn.weights=sigmoid", "model/pos=t5"),
    ("+model/pos@model.attn.pos=rope", "model/pos=none"),
    ("model.pos.fraction=0.5", "model.pos.interleaved=true"),
    ("model/attn=mla", "model.attn.query_latent_dim=10", "model/attn/mask=window"),
    (
        "model.tie_embeddings=false",
        "model.head_bias=true",
        "model.softcap=3.0",
        "model.scale_embedding=false",
    ),
    ("model.loops=3", "model.attn.value_residual=true"),
    ("model.first=[mlp]",),
    ("objective.predict_ahead=2", "objective.z_loss=1e-3"),
    ("model/mlp=gelu", "model.mlp.bias=true"),
    ("model/residual=hyper", "model.residual.lanes=2", "norm=post"),
    ("model/mlp=moe", "+model/mlp@model.mlp.shared=gelu"),
]
"""What isn't a file of its own, and changes what a model computes."""
TRACED = [(f"experiment={name}",) for name in ("gpt2", "gemma2", "jamba", "deepseek_v3", "megalodon")]
"""A preset for each thing that a trace must name; the costs of all presets are held to what is measured."""
PRESETS = [(choice,) for choice in options("experiment")]


def values(group: str) -> list[str]:
    """Return the options of a group for the covering set; what not every option has may be left as it is."""
    return ([""] if group.count("/") > 1 or group == "model/rec" else []) + options(group)


def compatible(row: list[str]) -> bool:
    chosen = [choice for choice in row if choice]
    return go_together(chosen) and not any(is_refused(*pair) for pair in itertools.combinations(chosen, 2))


PAIRS = [
    tuple(choice for choice in row if choice)
    for row in AllPairs([values(group) for group in GROUPS], filter_func=compatible)
]

# the laws of one option follow each other, so that a process composes and builds what it needs once
of_choices = partial(pytest.mark.parametrize, "choices", ids=" ".join, scope="module")
every_single = of_choices(SINGLES)
every_traced = of_choices(SINGLES + TRACED)
every_option = of_choices(SINGLES + VALUES + PRESETS)
# PAIRS has most options, each with every option of each other group; those in no row are tried alone
every_pair = of_choices(
    [single for single in SINGLES if single[0] not in {*itertools.chain(*PAIRS)}] + VALUES + PRESETS + PAIRS
)
ENCODER = ("model/encoder=same", "model/layout=decoder")
"""For an objective that gives a memory."""


def refuses_to_generate(model: LM) -> bool:
    """Whether a model looks ahead; if so it must refuse to generate, and the laws of generating spare it."""
    if model.cannot_generate is None:
        return False
    with pytest.raises(UserError, match="can't generate"):
        model.init_state(1, T)
    return True


def to_the_bit(model: LM) -> float:
    """Return the tolerance for results that must be the same: none, or rounding where experts are chosen.

    A product's last bits depend on its number of rows, and an expert's rows are those of all tokens that chose it. Each
    layer adds to that; a leak would be thousands of times as large.
    """
    return 0 if all(param.role.active == 1 for param in model.parameters()) else 3e-6


def same(one: torch.Tensor, other: torch.Tensor, tolerance: float = 2e-5) -> None:
    scale = max(1.0, other.abs().max().item())
    assert (one - other).abs().max().item() <= tolerance * scale


@every_pair
def test_it_learns(choices, objective=OBJECTIVE):
    """The loss is finite, every parameter has a gradient, and steps lower the loss on the same batch.

    Other objectives are those of `make check`; tests/test_objectives_and_mixers.py has all with every mixer.
    """
    learn = build(tiny_cfg(*choices, objective).objective)
    if build(tiny_cfg(objective).objective).gives_memory:
        chosen = {choice.split("=")[0] for choice in choices}
        choices = (*choices, *(choice for choice in ENCODER if choice.split("=")[0] not in chosen))
    try:
        model = tiny_model(*choices, objective).train()
    except UserError as error:
        if objective == OBJECTIVE:
            raise
        pytest.skip(f"{objective}: {error}")  # the two can't be combined
    batch = texts(given=T // 2 if objective != OBJECTIVE or learn.gives_memory else 0)
    inputs = learn.inputs(batch, Noise(0, 0, range(4), 4), model)
    counted = learn.counted(batch, inputs)

    def loss():
        return learn.loss(model, inputs) / counted

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
    losses, without = [], set(dict(model.named_parameters()))
    # a gain that begins at zero lets no gradient past it, until it has moved; an encoder is behind two of them
    # tokens that change their experts may raise the loss for a step
    has_experts = any(param.role.active < 1 for param in model.parameters())
    for _ in range(5 if has_experts else 2 if model.encoder is None else 3):
        losses.append(loss())
        losses[-1].backward()
        without -= {path for path, p in model.named_parameters() if reached(p)}
        optimizer.step()
    losses.append(loss())
    assert all(math.isfinite(loss.item()) for loss in losses)
    assert losses[-1] < losses[0]
    assert has_experts or all(after < before for before, after in zip(losses, losses[1:]))
    assert not without, "have no gradient"


def texts(given: int) -> Batch:
    """Return a batch of texts whose first tokens are given."""
    text, given_BT = tokens(4, T + 1), torch.arange(T).expand(4, T) < given
    text[:, 0] = 0
    return Batch(text[:, :-1], text[:, 1:].masked_fill(given_BT, IGNORED), None, given_BT if given else None)


def reached(param: torch.nn.Parameter) -> bool:
    """Whether a parameter has a gradient; that of an expert which no token has chosen is zero."""
    return param.grad is not None and (param.role.active < 1 or bool(param.grad.any()))


@every_pair
def test_it_does_not_look_ahead(choices):
    """Changing token t changes no output before t, to the bit, and does change the one at t."""
    model, batch, t = random_model(*choices), tokens(), 15
    changed = batch.clone()
    changed[:, t] = (changed[:, t] + 1) % VOCAB
    if refuses_to_generate(model):
        return
    one, other = model(batch), model(changed)
    same(one[:, :t], other[:, :t], to_the_bit(model))
    assert not torch.equal(one[:, t], other[:, t])


@every_pair
@torch.no_grad()
def test_decoding_step_by_step_equals_the_whole(choices):
    """A prompt read at once and then one token at a time gives the logits of the full forward pass."""
    model, batch = random_model(*choices), tokens()
    if refuses_to_generate(model):
        return
    state = model.init_state(len(batch), T)
    steps = [model(batch[:, :7], state=state), model(batch[:, 7:10], state=state)]
    steps += [model(batch[:, t : t + 1], state=state) for t in range(10, T)]
    same(torch.cat(steps, dim=1), model(batch))


@every_pair
@torch.no_grad()
def test_prompts_of_different_lengths_decode_as_if_alone(choices):
    """A shorter prompt, padded on the left in a batch, gets the logits that it gets alone."""
    model, batch, pad = random_model(*choices), tokens(), 5
    if refuses_to_generate(model):
        return
    segments = torch.zeros_like(batch)
    segments[1, :pad] = PAD
    state = model.init_state(2, T)
    together = [model(batch[:, :12], segments[:, :12], state)]
    together += [model(batch[:, start:end], state=state) for start, end in [(12, 13), (13, 14), (14, T)]]
    together = torch.cat(together, dim=1)
    same(together[:1], model(batch[:1]))
    same(together[1:, pad:], model(batch[1:, pad:]))


@every_option
@torch.no_grad()
def test_steps_that_a_gpu_replays_equal_the_whole(choices):
    """Static steps give the logits of the full forward pass, unless a module declares that it can't take them."""
    model, batch, pad, given = random_model(*choices), tokens(), 5, 18
    if refuses_to_generate(model) or not has_static_steps(model):
        return
    segments = torch.zeros_like(batch)
    segments[1, :pad] = PAD
    state = model.init_state(2, T)
    model(batch[:, :given], segments[:, :given], state)
    static = StaticState(state, 2, batch.device)
    steps = [model.logits(model.step(batch[:, t : t + 1], static)) for t in range(given, T)]
    together = torch.cat(steps, dim=1)
    same(together[:1], model(batch[:1])[:, given:])
    same(together[1:], model(batch[1:, pad:])[:, given - pad :])


@every_pair
def test_documents_in_one_row_do_not_meet(choices):
    """Two documents packed in a row give the outputs that they give alone, whatever pads the rest."""
    model, batch = random_model(*choices), tokens()
    segments = torch.tensor([[0] * 9 + [1] * 10 + [PAD] * 5] * 2)
    packed = model(batch, segments)
    same(packed[:, :9], model(batch[:, :9]))
    same(packed[:, 9:19], model(batch[:, 9:19]))
    batch_with_other_padding = batch.clone()
    batch_with_other_padding[:, 19:] = 0
    same(model(batch_with_other_padding, segments)[:, :19], packed[:, :19], to_the_bit(model))


@every_single
def test_evaluation_is_the_same_in_any_batch(choices):
    """The loss of some documents doesn't depend on how many stand in a batch, nor on how far they are padded."""
    model, learn = random_model(*choices), build(tiny_cfg(*choices).objective)
    lengths = [3, 23, 7, 13, 20, 5, 9, 16, 11]
    batch = tokens(len(lengths), 2 * T)

    @torch.no_grad()
    def loss(rows: int, padding: int) -> float:
        total = 0.0
        for start in range(0, len(lengths), rows):
            some = range(start, min(start + rows, len(lengths)))
            width = min(max(lengths[row] for row in some) + padding, T)
            targets = batch[some, 1 : width + 1].clone()
            for target, row in zip(targets, some):
                target[lengths[row] :] = IGNORED
                target[: lengths[row] // 4] = IGNORED  # context, as windows of evaluation have it
            total += learn.loss(model, Inputs(batch[some, :width], targets, None)).item()
        return total

    alone = loss(1, padding=0)
    for rows, padding in [(1, 1), (1, 9), (2, 0), (9, 0), (9, 20)]:
        assert loss(rows, padding) == pytest.approx(alone, rel=1e-5)


@every_single
def test_it_passes_the_check_before_training(choices):
    """No false alarm: the laws that runs are held to are those that are held here."""
    assert "no look-ahead" in check_laws(tiny_cfg(*choices))


@every_option
def test_it_computes_in_bf16_too(choices):
    """Under autocast, as GPUs and newer CPUs train: near what fp32 gives, also with segments and with a state."""
    cfg = tiny_cfg(*choices)
    model, learn, batch = tiny_model(*choices).train(), build(cfg.objective), tokens(2, T + 1)
    segments = torch.tensor([[0] * 9 + [1] * 10 + [PAD] * 5] * 2)
    exact = learn.loss(model, Inputs(batch[:, :-1], batch[:, 1:], segments)).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = learn.loss(model, Inputs(batch[:, :-1], batch[:, 1:], segments))
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if not model.cannot_generate:
        state = model.eval().init_state(2, T)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            model(batch[:, :9], state=state)
            assert model(batch[:, 9:10], state=state).isfinite().all()


@every_option
def test_a_checkpoint_gives_the_same_logits(choices, tmp_path):
    """Saved and loaded into a model with other weights: the same logits to the bit."""
    model, other, batch = random_model(*choices), tiny_model(*choices), tokens()
    assert not torch.equal(other(batch), model(batch))
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints.save(tmp_path, model, optimizer, checkpoints.Progress(step=1), keep=1)
    checkpoints.load_weights(tmp_path / "step-000001", other)
    assert torch.equal(other(batch), model(batch))


class CountMatrixProducts(TorchDispatchMode):
    """Counts 2·m·n·k for each matrix product that is really done."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.flops += 2 * out.numel() * args[0].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.flops += 2 * out.numel() * args[1].shape[-1]
        return out


@every_option
def test_reported_costs_are_what_is_measured(choices):
    model = tiny_model(*choices)
    reported = cost(model, T)
    held = model.state_dict(keep_vars=True).values()
    unique = {p.data_ptr(): p.numel() for p in held if isinstance(p, torch.nn.Parameter)}
    assert reported.params == sum(unique.values())
    assert reported.params_active <= reported.params

    with (
        torch.no_grad(),  # where there are gradients, a CPU leaves out a quarter of the causal products
        CountMatrixProducts() as measured,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        ahead: list[torch.Tensor] = []
        for x_BTD in [model.hidden(tokens(1), ahead=ahead), *ahead]:
            model.logits(x_BTD)
    assert reported.flops_per_token == 3 * measured.flops / T

    if refuses_to_generate(model):
        assert reported.state_bytes_per_sequence is None
        return
    state = model.init_state(1, T)
    for part in tokens(1).split(T - 1, dim=1):  # a step after the prompt: neither may keep more
        model(part, state=state)
    held = {x.untyped_storage() for states in state.branches for s in states.values() for x in s.tensors()}
    assert reported.state_bytes_per_sequence == sum(storage.nbytes() for storage in held)


@every_option
def test_the_parameters_that_are_described_add_up(choices, monkeypatch):
    monkeypatch.setattr(
        "minllm.model.cost.forward_flops", lambda model, seq_len: 1
    )  # a test above has the FLOPs
    said = column(tiny_cfg(*choices))
    groups = [figure for name, figure in said.items() if name.startswith("  ") and "per token" not in name]
    assert sum(int(figure.replace(",", "")) for figure in groups) == int(said["parameters"].replace(",", ""))


@every_traced
def test_it_is_traced_and_the_totals_are_what_is_measured(choices):
    cfg = tiny_cfg(*choices)
    trace, model = tracing.trace(cfg), build(cfg.model, build(cfg.tokenizer).vocab_size, build(cfg.norm))
    steps = [part for part in trace.root.walk() if isinstance(part, Step)]
    assert trace.params == sum(p.numel() for p in model.parameters())
    assert sum(step.params for step in steps) == trace.params, "each parameter is read by a step"
    assert trace.flops == sum(step.flops for step in steps) == forward_flops(model, T)
    assert trace.state_bytes == state_bytes(model, 1, T)
    text = str(trace)
    assert max(map(len, text.splitlines())) <= 110
    assert f"{trace.params:,} parameters" in text and f"{trace.flops:,} FLOPs" in text
    assert all(len(value.letters) == len(value.sizes) for step in steps for value in step.outputs)


@every_option
def test_it_begins_well(choices):
    """The first loss is that of a guess, ln V, and the stream neither vanishes nor explodes with depth."""
    model, batch = tiny_model(*choices, n_layers=12), tokens(8, T + 1)
    sizes = []
    for branch in model.branches():
        branch.register_forward_hook(
            lambda module, args, out: sizes.append(out.square().mean().sqrt().item())
        )
    loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    assert abs(loss.item() - math.log(VOCAB)) < 0.1 * math.log(VOCAB)
    # independent branches add up like their square root; linear growth is the limit, exponential growth a bug
    assert 1 / len(sizes) < sizes[-1] / sizes[0] < len(sizes)
