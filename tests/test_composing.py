"""What tests/composing.py and tests/nodes.py replace behaves as the originals do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import AnyNode, Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.schema.groups import CONF
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


@dataclass
class Typed:
    """What declares its types, as Hydra's own configuration does."""

    number: int = 1
    text: str = "t"
    maybe: str | None = None
    texts: list[str] = field(default_factory=lambda: ["a"])
    numbers: dict[str, int] = field(default_factory=lambda: {"a": 1})
    anything: Any = 1


@pytest.mark.parametrize("flags", [{}, {"struct": True}], ids=str)
@pytest.mark.parametrize("part", [*PARTS, Typed], ids=str)
def test_values_are_read_as_usual(part, flags, monkeypatch):
    def read() -> Any:
        config = OmegaConf.create(part, flags=flags or None)
        nodes = [config, *config._content.values()]
        dicts = [node for node in nodes if isinstance(node, DictConfig)]
        asks = [
            lambda: config[name],
            lambda: config._get_node(name),
            lambda: config._get_node(name, validate_access=False),
            lambda: config._get_node(name, throw_on_missing_value=True),
            lambda: getattr(config, name),
            lambda: config.get(name, "default"),
        ]
        outcomes = [list(node.keys()) for node in [*dicts, *map(DictConfig, (None, "???", "${a}"))]]
        for name in ("a", "b", "e", "missing", 1, *Typed.__dataclass_fields__):
            for ask in asks if isinstance(name, str) else asks[:4]:
                try:
                    outcomes.append(ask())
                except (OmegaConfBaseException, AttributeError, KeyError) as error:
                    outcomes.append(type(error))
        return outcomes

    fast = read()
    use_originals(monkeypatch)
    assert fast == read()


VALUES = [
    3,
    2.5,
    True,
    None,
    "x",
    "???",
    "\\???",
    "${a}",
    "a ${b}",
    "${",
    {"n": 1},
    {"n": {"m": "???"}},
    [1, "x"],
    object,
]


@pytest.mark.filterwarnings("ignore:Implicit conversion")
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"readonly": True},
        {"struct": True},
        {"allow_objects": True},
        {"convert": False},
        {"no_deepcopy_set_nodes": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("part", [PARTS[0], Typed], ids=str)
def test_values_are_set_as_usual(part, flags, monkeypatch):
    def outcome_of(change: Callable[[Any], Any]) -> Any:
        config = OmegaConf.create(part)
        config._set_flag([*flags], [*flags.values()])
        try:
            change(config)
        except (OmegaConfBaseException, LookupError, AttributeError, TypeError, AssertionError) as error:
            return type(error), str(error), shown(config)
        return shown(config)

    def changed() -> Any:
        names = ["a", "b", "e", "3", 3] if part is PARTS[0] else Typed.__dataclass_fields__
        changes = [partial(put, name, value) for name in names for value in VALUES]
        # of its own for each change, as some are moved
        changes += [partial(put, name, node) for name in names for node in nodes_to_put()]
        changes += [partial(append, name, value) for name in ("b", "texts") for value in VALUES]
        changes += [
            partial(replace, index, name, value)
            for index in (0, -1, 7, "a")
            for name in ("b", "texts")
            for value in VALUES[:5]
        ]
        changes += [partial(replace_in, content) for content in (None, "???", "${a}")]
        changes += [partial(put_inside, name, value) for name in ("b", "numbers") for value in VALUES]
        changes += [put_into_what_is_readonly]
        return [outcome_of(change) for change in changes]

    fast = changed()
    use_originals(monkeypatch)
    assert fast == changed()


def nodes_to_put() -> list[Any]:
    values = (1, None, "???", "${a}", {"m": [1, {"o": None}]}, [1, "${a}"], {})
    around = [OmegaConf.create({"n": value}) for value in values]
    inner = [OmegaConf.create({"n": value})._get_node("n") for value in values]
    readonly = AnyNode(1, flags={"readonly": True})
    return [*around, *inner, readonly, OmegaConf.structured(Typed)]


def put(name: Any, value: Any, config: Any) -> None:
    config[name] = value


def append(name: str, value: Any, config: Any) -> None:
    (config[name].c if name == "b" else config[name]).append(value)


def replace(index: Any, name: str, value: Any, config: Any) -> None:
    (config[name].c if name == "b" else config[name])[index] = value


def replace_in(content: Any, config: Any) -> None:
    ListConfig(content)[0] = 1


def put_inside(name: str, value: Any, config: Any) -> None:
    config[name]["c"] = value


def put_into_what_is_readonly(config: Any) -> None:
    name = next(iter(config))
    config._get_node(name)._set_flag("readonly", True)
    config[name] = 5


@pytest.mark.filterwarnings("ignore:extend_list")
@pytest.mark.parametrize(
    "line",
    [
        "a=1",
        "a=[1,{b: 2}]",
        "+a@b=c",
        "~a",
        "a=b,c",
        "a=choice(1,2)",
        "a=${b}",
        "a=extend_list(1)",
        "a=sort(2,1)",
    ],
)
def test_overrides_are_understood_as_usual(line, monkeypatch):
    fast = [OverridesParser.create().parse_override(line) for _ in range(2)]
    assert fast[0] is not fast[1]
    use_originals(monkeypatch)
    assert fast == 2 * [OverridesParser.create().parse_override(line)]


def test_a_folder_of_options_counts_only_where_it_is_given(tmp_path):
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm/own.yaml").write_text((CONF / "norm/pre.yaml").read_text(encoding="utf-8"))
    compose(["norm=pre"])
    for _ in range(2):
        assert compose(["norm=own"], config_dir=tmp_path).choices.norm == "own"
        with pytest.raises(UserError, match="no norm=own"):
            compose(["norm=own"])


def test_changing_what_a_text_says_leaves_the_text_as_it_is():
    text = "a: {b: [1, 2]}\n"
    OmegaConf.create(text).a.b.append(3)
    assert OmegaConf.create(text) == {"a": {"b": [1, 2]}}


def use_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    for (owner, attribute), original in composing.ORIGINALS.items():
        monkeypatch.setattr(owner, attribute, original)
