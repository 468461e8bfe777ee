"""Every option of the model and every objective: on a GPU as on a CPU, in fp32; and in bf16 about the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minllm.data.batches import Batch, Rows
from minllm.model.lm import LM
from minllm.objective import Inputs, Objective
from minllm.objective.noise import Noise
from minllm.schema.building import build
from minllm.training.evaluation import autocast
from tests.gpu.figures import assert_near, assert_same_direction
from tests.tiny import T, completed, groups_of_model, options, tiny_cfg, tiny_model, tokens

SINGLES = [completed(choice) for group in groups_of_model() for choice in options(group)]
VALUES = [
    ("model.attn.qk_norm=head",),
    ("model.attn.qk_norm=full",),
    *[(f"model.attn.{name}=true",) for name in ("sinks", "output_gate", "value_residual", "qkv_bias")],
    ("model.attn.softcap=2.0",),
    ("model.attn.weights=sigmoid",),
    ("model.attn.sinks=true", "model.attn.softcap=2.0", "model/pos=alibi", "model/attn/mask=window"),
    ("model/attn=mla", "model.attn.query_latent_dim=10", "model/attn/mask=window"),
    ("model.tie_embeddings=false", "model.head_bias=true", "model.softcap=3.0", "model.scale_embedding=true"),
    ("model.loops=3", "model.attn.value_residual=true"),
    ("objective.predict_ahead=2", "objective.z_loss=1e-3"),
]
ENCODER = ("model/encoder=same", "model/layout=decoder")
NEEDS = {f"objective={name}": ENCODER for name in ("mixture", "seq2seq", "span")}

every_option = pytest.mark.parametrize("choices", [*SINGLES, *VALUES], ids=" ".join)


def gradients(
    model: LM, objective: Objective, inputs: Rows, device: str, precision: str = "fp32"
) -> dict[str, Tensor]:
    """Return the loss and the gradient of each parameter."""
    model = model.to(device).train()
    model.zero_grad()
    with autocast(torch.device(device), precision):
        loss = objective.loss(model, inputs.to(torch.device(device)))
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"the loss": loss, **grads}


def packed(is_packed: bool) -> Inputs:
    row = tokens(3, T + 1)
    place = torch.arange(T)
    segments = torch.where(place < 9, 0, torch.where(place < T - 3, 1, -1)).expand(3, -1)
    targets = row[:, 1:].masked_fill(segments == -1, -100) if is_packed else row[:, 1:]
    return Inputs(row[:, :-1], targets.contiguous(), segments.contiguous() if is_packed else None)


@every_option
@pytest.mark.parametrize("is_packed", [False, True], ids=["one segment", "packed"])
def test_it_computes_what_a_cpu_does(choices, is_packed):
    objective = build(tiny_cfg(*choices).objective)
    inputs = packed(is_packed)
    ours, reference = (
        gradients(tiny_model(*choices, randomised=True), objective, inputs, device)
        for device in ("cuda", "cpu")
    )
    assert_near(ours, reference, 2e-3, least=1e-4)


@every_option
def test_bf16_is_about_the_same(choices):
    """With the weights of a new model: random ones of σ = 0.2 would enlarge what is rounded."""
    objective = build(tiny_cfg(*choices).objective)
    inputs = packed(True)
    ours, reference = (
        gradients(tiny_model(*choices), objective, inputs, device, precision)
        for device, precision in (("cuda", "bf16"), ("cpu", "fp32"))
    )
    assert_near({"the loss": ours.pop("the loss")}, {"the loss": reference.pop("the loss")}, 0.02)
    assert_same_direction(ours, reference, 0.9)


@pytest.mark.parametrize("name", options("objective"))
def test_an_objective_computes_what_it_does_on_a_cpu(name):
    choices = (name, *NEEDS.get(name, ()))
    objective = build(tiny_cfg(*choices).objective)
    row = tokens(4, T + 1)
    row = torch.where(row < 6, 6, row)  # the tokens below are special
    row[:, 0] = 5  # begins a document
    given = (torch.arange(T) < T // 3).expand(4, -1) if name == "objective=seq2seq" else None
    targets = row[:, 1:] if given is None else row[:, 1:].masked_fill(given, -100)
    batch = Batch(row[:, :-1].contiguous(), targets.contiguous(), None, given, 3, 5, 5)
    results = []
    for device in ("cuda", "cpu"):
        model = tiny_model(*choices, randomised=True).to(device)
        inputs = objective.inputs(batch, Noise(0, 7, range(4), 4), model)
        results.append(gradients(model, objective, inputs, device))
        with torch.no_grad():
            on_device = Batch(*(x.to(device) if isinstance(x, Tensor) else x for x in vars(batch).values()))
            nats = objective.nats(model.eval(), on_device, Noise(0, "evaluation", range(4), 4))
        results[-1]["nats"] = nats
    assert_near(*results, 2e-3)
