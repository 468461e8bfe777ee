"""Runs whose configuration names classes by where they used to be can still be read, and go on."""

import importlib
import re

import pytest
import torch

import minllm
from minllm.schema.moved import current_name
from tests.test_training import TINY

BEFORE = """
model.mask.Blocks model.mask.Dilated model.mask.Full model.mask.Strided model.mask.Window
model.mixers.attention.Attention model.mixers.conv.ShortConv model.mixers.cross.CrossAttention
model.mixers.deltanet.DeltaNet model.mixers.deltanet.GatedDeltaNet model.mixers.differential.DifferentialAttention
model.mixers.gla.GatedLinearAttention model.mixers.latent.LatentAttention model.mixers.mamba.Mamba
model.mixers.mamba2.Mamba2 model.mixers.mega.Mega model.mixers.min_gru.MinGRU model.mixers.rglru.RGLRU
model.mlps.dense.ClampedGated model.mlps.dense.Gated model.mlps.dense.Ungated model.mlps.moe.MoE
model.mlps.router.ExpertChoice model.mlps.router.Sigmoid model.mlps.router.Softmax model.position.Alibi
model.position.Learned model.position.Position model.position.Sinusoidal model.position.T5 model.rope.Linear
model.rope.Llama3 model.rope.NTK model.rope.Rope model.rope.Yarn study.size.Size
"""


@pytest.mark.parametrize("name", BEFORE.split())
def test_each_class_that_has_moved_is_found_by_its_old_name(name):
    module, _, of_class = current_name(f"minllm.{name}").rpartition(".")
    assert module != f"minllm.{name}".rpartition(".")[0]
    assert getattr(importlib.import_module(module), of_class).__name__ == of_class


def test_run_with_old_class_names_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a configuration that was changed may name no place outside
    text = tmp_path / "squares.txt"
    text.write_text("\n".join(f"{number} times {number} is {number**2}." for number in range(60)))
    words = [*TINY, "model/pos=alibi", "model/mlp=geglu", "train.steps=2", f"data.path={text}"]
    words.append(f"data.cache={tmp_path / 'stores'}")
    run = tmp_path / "run"
    minllm.train(minllm.compose(words), run)
    model, _, _ = minllm.load(run)
    config = run / "config.yaml"
    text = config.read_text(encoding="utf-8")
    for now, before in (
        ("attention.attention", "mixers.attention"),
        ("attention.mask", "mask"),
        ("mlp.dense", "mlps.dense"),
        ("position.bias.Alibi", "position.Alibi"),
    ):
        text, found = re.subn(rf"minllm\.model\.{re.escape(now)}\b", f"minllm.model.{before}", text)
        assert found
    config.write_text(text, encoding="utf-8")

    loaded, _, _ = minllm.load(run)
    tokens_BT = torch.arange(10)[None]
    assert torch.equal(loaded(tokens_BT), model(tokens_BT))
    assert minllm.train(minllm.compose([f"resume={run}", "train.steps=4"]))["steps"] == 4
