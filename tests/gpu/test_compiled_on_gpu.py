"""torch.compile on a GPU: attention and recurrent models, masks and segments, in bf16 as they train."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minllm.config.compose import compose
from minllm.model.build import build_model
from minllm.objective import Inputs
from minllm.schema.building import build
from minllm.training.evaluation import autocast
from tests.gpu.figures import assert_near, assert_same_direction
from tests.tiny import VOCAB, tokens

LENGTH = 256
SIZES = ["model.dim=128", "model.n_layers=2", "model.dropout=0", f"data.seq_len={LENGTH}"]
ATTENTION = ["model/attn=gqa", "model.attn.n_heads=4", "model.attn.n_kv_heads=2"]
CASES = [
    (ATTENTION, False),
    ([*ATTENTION, "model/attn/mask=window", "model.attn.mask.window=70"], True),
    ([*ATTENTION, "model.attn.softcap=20.0"], True),
    (["model/rec=rglru", "model.layout=[rec mlp]"], True),
    (["model/rec=mamba", "model.layout=[rec mlp]"], False),
    (["model/rec=mega", "model.layout=[rec mlp]"], False),
]
"""Choices, and whether rows hold several documents and padding. Each takes some ten seconds to compile."""


@pytest.mark.parametrize(
    ("choices", "is_packed"), CASES, ids=["attention", "window", "softcap", "rglru", "mamba", "mega"]
)
def test_compiled_steps_compute_what_eager_ones_do(choices, is_packed):
    torch._dynamo.reset()
    cfg = compose([*choices, *SIZES])
    model = build_model(cfg, SimpleNamespace(vocab_size=VOCAB)).cuda().train()
    objective = build(cfg.objective)
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
