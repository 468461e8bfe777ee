"""What tests/composing.py keeps for the next composition changes no configuration."""

from __future__ import annotations

from typing import Any

import hydra
import pytest
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

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
    use_originals(monkeypatch)
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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["model/attn=mqa", "train.steps=3"], ["model/attn=mqa", "model.dim=32", "train.steps=4"]),
        (
            ["~logger", "+model/pos@model.attn.pos=none"],
            ["~logger", "+model/pos@model.attn.pos=none", "seed=3"],
        ),
    ],
)
def test_other_values_of_the_same_choices_are_those_given(one, other, monkeypatch):
    results: list[Any] = []
    real = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *args, **options: noted(results, real(*args, **options)))
    compose(one)
    compose(other)
    use_originals(monkeypatch)
    compose(other)
    assert shown(results[1]) == shown(results[2]) != shown(results[0])


PARTS = [
    {"a": 1, "b": {"c": [1, 2], "d": "???"}, "e": None},
    {"b": {"c": [3], "d": 2, "f": {"g": "${a}"}}, "e": {"h": 1}},
    {"a": "???", "b": None, "e": 2},
    {"a": "${b.c}", "b": "${e}", "e": {"h": "???", "i": {}}},
    {"a": {"x": 1}, "b": {"c": {"y": 1}, "d": None}},
    {"a": [], "b": {}, "e": {}},
]


@pytest.mark.parametrize(
    "flags", [{}, {"readonly": True}, {"struct": True}, {"allow_objects": True}], ids=str
)
@pytest.mark.parametrize("one", PARTS, ids=str)
@pytest.mark.parametrize("other", PARTS, ids=str)
def test_dictionaries_merge_as_usual(one, other, flags, monkeypatch):
    def merged() -> Any:
        outcomes = []
        for flags_of_one, flags_of_other in (({}, flags), (flags, {})):
            config = OmegaConf.create(one, flags=flags_of_one or None)
            try:
                config.merge_with(OmegaConf.create(other, flags=flags_of_other or None))
            except OmegaConfBaseException as error:
                outcomes.append(type(error))
            outcomes.append(shown(config))
        return outcomes

    fast = merged()
    use_originals(monkeypatch)
    assert fast == merged()


@pytest.mark.parametrize("flags", [{}, {"struct": True}], ids=str)
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_values_are_read_as_usual(part, flags, monkeypatch):
    def read() -> Any:
        config = OmegaConf.create(part, flags=flags or None)
        asks = [lambda: config[name], lambda: getattr(config, name), lambda: config.get(name, "default")]
        outcomes = []
        for name in ("a", "b", "e", "missing", 1):
            for ask in asks[: 3 if isinstance(name, str) else 1]:
                try:
                    outcomes.append(ask())
                except (OmegaConfBaseException, AttributeError, KeyError) as error:
                    outcomes.append(type(error))
        return outcomes

    fast = read()
    use_originals(monkeypatch)
    assert fast == read()


def test_changing_what_a_text_says_leaves_the_text_as_it_is():
    text = "a: {b: [1, 2]}\n"
    OmegaConf.create(text).a.b.append(3)
    assert OmegaConf.create(text) == {"a": {"b": [1, 2]}}


def use_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    for (owner, attribute), original in composing.ORIGINALS.items():
        monkeypatch.setattr(owner, attribute, original)
