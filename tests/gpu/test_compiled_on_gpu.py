"""torch.compile on a GPU: attention and recurrent models, masks and segments, in bf16 as they train."""

from __future__ import annotations

import pytest
import torch

from minllm.objective import Inputs
from minllm.schema.building import build
from minllm.training.evaluation import autocast
from tests.gpu.figures import assert_near, assert_same_direction
from tests.tiny import tiny_cfg, tiny_model, tokens

LENGTH = 256
WIDE = ["model.dim=128", f"data.seq_len={LENGTH}"]
MODELS = [
    ("model/attn=gqa",),
    ("model/rec=rglru",),
    ("model/rec=mamba",),
    ("model/rec=mega",),
    ("model/attn=gqa", "model/attn/mask=window"),
    ("model/attn=gqa", "model.attn.softcap=20.0"),
]


@pytest.mark.parametrize("is_packed", [False, True], ids=["one segment", "packed"])
@pytest.mark.parametrize("choices", MODELS, ids=" ".join)
def test_compiled_steps_compute_what_eager_ones_do(choices, is_packed):
    torch._dynamo.reset()
    model = tiny_model(*choices, f"model.dim={128}").cuda().train()
    objective = build(tiny_cfg(*choices).objective)
    row = tokens(4, LENGTH + 1).cuda()
    place = torch.arange(LENGTH, device="cuda")
    segments = torch.where(place < 100, 0, torch.where(place < 250, 1, -1)).expand(4, -1).contiguous()
    targets = row[:, 1:].masked_fill(segments == -1, -100) if is_packed else row[:, 1:].contiguous()
    inputs = Inputs(row[:, :-1].contiguous(), targets, segments if is_packed else None)
    results = []
    for loss_of in (torch.compile(objective.loss), objective.loss):
        model.zero_grad()
        with autocast(torch.device("cuda"), "bf16"):
            loss = loss_of(model, inputs)
        loss.backward()
        results.append({"the loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()})
    compiled, eager = results
    assert_near({"loss": compiled.pop("the loss")}, {"loss": eager.pop("the loss")}, 2e-3)
    assert_same_direction(compiled, eager, 0.99)
