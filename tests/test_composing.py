"""What tests/composing.py keeps for the next composition changes no configuration."""

from __future__ import annotations

from typing import Any

import hydra
import pytest
from omegaconf import Container

from minllm.config.compose import compose
from tests import composing


@pytest.mark.parametrize(
    "overrides",
    [
        ["model/attn=mqa", "train.steps=3", "data.seq_len=9"],
        ["experiment=jamba", "tags=[a,b]", "hydra.job.chdir=true"],
        ["task=trace", "model.layout=[attn mlp]", "model.dim=${data.seq_len}"],
    ],
)
def test_the_configuration_is_the_same(overrides, monkeypatch):
    results: list[Any] = []
    real = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *args, **options: noted(results, real(*args, **options)))
    for _ in range(2):  # made, and copied from what is kept
        compose(overrides)
    for (owner, attribute), original in composing.ORIGINALS.items():
        monkeypatch.setattr(owner, attribute, original)
    compose(overrides)
    assert shown(results[0]) == shown(results[1]) == shown(results[2])
    assert len(shown(results[2])) > 200


def noted(results: list[Any], cfg: Any) -> Any:
    results.append(cfg)
    return cfg


def shown(node: Any, above: Any = None) -> list[Any]:
    """Return the kind, the value and what OmegaConf notes of a node and of those in it, in their order."""
    assert above is None or node._parent is above
    notes = {name: value for name, value in vars(node._metadata).items() if name != "resolver_cache"}
    if not isinstance(node, Container) or not isinstance(node._content, (dict, list)):
        return [(type(node), node._value(), notes)]
    inner = node._content.values() if isinstance(node._content, dict) else node._content
    return [(type(node), notes), *(line for value in inner for line in shown(value, node))]
