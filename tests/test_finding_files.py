"""The files of findings: the arms that they describe, what decides a prediction, and files from elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.model.build import build_shapes
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.schema.groups import find_groups
from minllm.schema.overrides import quoted
from minllm.sweep.plugin import is_search_key, register
from minllm.tasks.findings import finding_of
from minllm.verdict.finding import digest
from minllm.verdict.finding_protocol import Finding, FindingProtocol

NAMES = list(find_groups()["finding"])
NOT_BUILT = ("ranking",)
"""Searches whose arms aren't overrides of a single model."""


@pytest.mark.parametrize("preset", ["laptop", "gpu"])
@pytest.mark.parametrize("name", NAMES)
def test_the_arms_of_a_finding_can_be_built(name: str, preset: str):
    finding = finding_of(name)
    for words in finding.words(preset).values():
        shared = [quoted(word) for word in words if not is_search_key(word)]
        for arm in finding.arms.values() if finding.search not in NOT_BUILT else ():
            cfg = compose([*shared, *map(quoted, arm)])
            validate(cfg)
            build_shapes(cfg, build(cfg.tokenizer).vocab_size)


def test_a_finding_is_data_that_says_what_would_refute_it():
    for name in NAMES:
        finding = finding_of(name)
        assert finding.claim.endswith(".") and finding.refuted_by.endswith("."), name
        assert not finding.arms or next(iter(finding.arms)) not in finding.predicts, name


FINDING: dict[str, Any] = {
    "claim": "B beats a.",
    "papers": ["2002.04745"],
    "search": "verdict",
    "arms": {"a": ["norm=pre"], "b": ["norm=post"]},
    "overrides": ["train.steps=3"],
    "predicts": {"b": ["better"]},
    "refuted_by": "b is worse.",
}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"predicts": {}}, "finding.predicts is empty, so nothing could refute it"),
        ({"predicts": {"c": ["better"]}}, "finding.predicts has c, but the arms .* are b"),
        ({"predicts": {"a": ["better"]}}, "finding.predicts has a, but the arms .* are b"),
        ({"change": {"b": ["worse"]}}, "finding.change needs two parts or more"),
        (
            {"change": {"b": ["worse"]}, "parts": {"x": [], "y": []}, "search": "ladder"},
            "it needs finding.search=verdict",
        ),
        ({"gpu_parts": {"x": []}}, "finding.gpu_parts has x, which finding.parts hasn't"),
        ({"at_scale": {"b": ["shrinks"]}}, "it needs finding.search=ladder"),
    ],
)
def test_a_prediction_that_nothing_could_test_is_refused(changed, sentence):
    Finding(**FINDING)
    with pytest.raises(UserError, match=sentence):
        Finding(**{**FINDING, **changed})


def test_seeds_of_pairs_end_before_those_of_tuning():
    with pytest.raises(UserError, match="search.first_seed must be below 1000, not 1000"):
        FindingProtocol(preset="laptop", first_seed=1000)


def test_the_digest_is_of_what_decides():
    one = Finding(**FINDING)
    assert digest(one, "laptop") == digest(replace(one, found="A bug.", claim="B wins."), "laptop")
    others = [
        replace(one, overrides=["train.steps=4"]),
        replace(one, predicts={"b": ["worse"]}),
        replace(one, bounds=True),
        replace(one, arms={"a": [], "b": ["norm=post"]}),
    ]
    assert len({digest(finding, "laptop") for finding in [one, *others]}) == 5
    assert digest(replace(one, gpu=["train.steps=9"]), "gpu") != digest(one, "gpu") == digest(one, "laptop")


def test_parts_have_further_overrides_on_a_gpu():
    finding = Finding(**FINDING, gpu=["x=2"], parts={"p": ["x=1"], "q": []}, gpu_parts={"p": ["x=3"]})
    assert [words[-2:] for words in finding.words("gpu").values()] == [
        ["x=1", "x=3"],
        ["train.steps=3", "x=2"],
    ]
    assert [words[-1] for words in finding.words("laptop").values()] == ["x=1", "train.steps=3"]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("overrides", "['extensions=[evil]']", "extensions"),
        ("overrides", "['hydra.launcher.setup=[ls]']", "hydra.launcher.setup"),
        ("gpu", "['sweep.storage=sqlite:////tmp/x']", "sweep.storage"),
        ("overrides", "['sweep={storage:x}']", "sweep"),
        ("overrides", "['+sweep.trial.extensions=[evil]']", "sweep.trial.extensions"),
        ("overrides", "['search._target_=x','+search.fixed.extensions=[evil]']", "extensions"),
        ("overrides", "['search={fixed: {extensions : [evil]}}']", "extensions"),
        ("overrides", "['judge.base_url=http://x']", "judge.base_url"),
        ("parts", "{x: ['++task=train']}", "task"),
        ("gpu_parts", "{x: ['++task=train']}", "task"),
        ("arms", "{a: [], b: ['data.cache=/tmp']}", "data.cache"),
        ("overrides", "['arms.c=[norm=pre,ext\\\\ensions=[evil]]']", "extensions"),
        ("overrides", "['mixers=[attn=mha resume=x]']", "resume"),
        ("parts", "{x: ['task@_global_=train']}", "task@_global_"),
    ],
)
def test_a_finding_from_elsewhere_sets_nothing_that_only_the_command_line_may(tmp_path, key, value, named):
    content = {**FINDING, "overrides": [], "arms": {"a": [], "b": []}}
    lines = ["# Theirs", "_target_: minllm.verdict.finding_protocol.Finding"]
    lines += [f"{name}: {json.dumps(content[name])}" for name in content if name != key]
    (tmp_path / "finding").mkdir()
    (tmp_path / "finding/theirs.yaml").write_text("\n".join([*lines, f"{key}: {value}"]))
    register()
    with pytest.raises(UserError, match=f"theirs.yaml makes {named} an override of its trials"):
        compose(["search=finding", "finding=theirs"], config_name="sweep", config_dir=tmp_path)


@pytest.mark.parametrize("key", ["probes", "models", "datasets"])
def test_nor_does_a_search_from_elsewhere_that_names_what_it_trains(tmp_path: Path, key: str):
    lines = [
        "# @package _global_",
        "# Theirs",
        "defaults: [profile]",
        f"{key}: ['rec=rnn extensions=[evil]']",
    ]
    (tmp_path / "search").mkdir()
    (tmp_path / "search/theirs.yaml").write_text("\n".join(lines))
    register()
    with pytest.raises(UserError, match="theirs.yaml makes extensions an override of its trials"):
        compose(["search=theirs"], config_name="sweep", config_dir=tmp_path)
