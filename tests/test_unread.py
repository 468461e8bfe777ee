"""What a task doesn't read, arms that are one by two names, and lists where one option is chosen: refused."""

from __future__ import annotations

import re

import hydra
import pytest

from minllm.config.compose import compose, own_hydra
from minllm.errors import UserError
from minllm.grid.manifest import computation_hash
from minllm.model.unused import computes_the_same
from minllm.schema.checking import validate
from minllm.verdict.protocol import refuse_identical_arms
from tests.tiny import tiny_model

TINY = ["model.dim=16", "model.n_layers=2", "tokenizer=tales_512"]


@pytest.mark.parametrize(
    "task, word, shown",
    [
        ("describe", "optim.lr=1e-3", "optim.lr"),
        ("describe", "optim=sgd", "optim"),
        ("describe", "logger=wandb", "logger"),
        ("describe", "train={steps: 5}", "train.steps"),
        ("trace", "sample.temperature=1", "sample.temperature"),
        ("trace", "schedule=constant", "schedule"),
        ("prepare", "model/attn=mqa", "model/attn"),
        ("tokenizer", "seed=1", "seed"),
        ("compare", "model.dim=64", "model.dim"),
        ("compare", "tags=[a]", "tags"),
    ],
)
def test_what_a_task_does_not_read_is_refused(task, word, shown):
    with pytest.raises(UserError, match=rf"^{re.escape(shown)} would do nothing: task={task} reads only"):
        compose([f"task={task}", word])


@pytest.mark.parametrize(
    "words",
    [
        ["task=describe", "data.seq_len=64", "size.params=1e5", "train.check=false", "norm=post"],
        ["task=describe", "experiment=min_grok"],
        ["task=trace", "data=text", "data.path=a.txt", "inside=attn"],
        ["task=tokenizer", "tokenizer.sizes=[300]", "data.seq_len=64"],
        ["optim.lr=1e-3", "logger=wandb", "sample.temperature=1"],
    ],
)
def test_what_a_task_reads_may_be_typed(words):
    compose(words)


@pytest.mark.parametrize(
    "word, cure",
    [
        ("model/attn=[mqa]", "type model/attn=mqa"),
        ("norm=[post]", "type norm=post"),
        ("experiment=[min_grok]", "type experiment=min_grok"),
        ("model/mlp=[swiglu,geglu]", "-m model/mlp=swiglu,geglu runs each"),
        ("+model/mlp@model.own=[swiglu]", "type model/mlp=swiglu"),
    ],
)
def test_a_list_is_no_choice(word, cure):
    with pytest.raises(UserError, match=f"takes one option, not a list: {re.escape(cure)}"):
        compose([word])


@pytest.mark.parametrize("word", ['tags=[""]', 'tags=[" "]', "model.dropout=1", "model.attn.dropout=1.0"])
def test_values_that_leave_nothing_are_refused(word):
    with pytest.raises(UserError, match=f"^{re.escape(word.partition('=')[0])} must be"):
        validate(compose([word]))


SAME = [
    (["model/attn=mha"], ["model/attn=gqa", "model.attn.n_kv_heads=4"]),
    (["model/pos=rope"], ["model/pos=rope_linear", "model.pos.factor=1"]),
    (["model.layout=[attn mlp]"], ["model.layout=[attn  mlp,attn mlp]"]),
    (["model.scale_embedding=false"], ["model.scale_embedding=1"]),
]


@pytest.mark.parametrize("one, other", SAME)
def test_arms_that_compute_the_same_are_refused(one, other):
    with pytest.raises(UserError, match=r"^arms.a and arms.b compute the same"):
        refuse_identical_arms({"a": compose([*TINY, *one]), "b": compose([*TINY, *other])})


@pytest.mark.parametrize(
    "one, other",
    [
        (["norm=pre"], ["norm=post"]),
        (["model.n_layers=2"], ["model.n_layers=3"]),
        (["model/attn=mha"], ["model/attn=gqa", "model.attn.n_kv_heads=4", "optim.lr=1"]),
        (["model.scale_embedding=true"], ["model.scale_embedding=1"]),
        (["model.transfer=none"], ["model.transfer=mup", "model.base.dim=8"]),
    ],
)
def test_arms_that_differ_are_not(one, other):
    refuse_identical_arms({"a": compose([*TINY, *one]), "b": compose([*TINY, *other])})


def test_nothing_is_said_of_large_models():
    large = compose([*TINY, "model.dim=2048", "model.attn.n_heads=16"])
    assert not computes_the_same(large, large.copy())


def composed(*words):
    with own_hydra():
        return hydra.compose("config", overrides=list(words), return_hydra_config=True)


@pytest.mark.parametrize(
    "one, other, alike",
    [
        (["model/attn=mha", "model.attn.n_kv_heads=2"], ["model/attn=gqa"], True),
        (["tags=[a]"], ["tags=[b]"], True),
        (["logger=wandb"], ["logger=none"], True),
        (["seed=1"], ["seed=2"], False),
        (["size.params=1e5"], ["size.params=2e5"], False),
        (["train.micro_batch_size=4"], ["train.micro_batch_size=2"], False),
    ],
)
def test_combinations_of_a_grid_are_alike_whatever_they_are_called(one, other, alike):
    assert (computation_hash(composed(*one)) == computation_hash(composed(*other))) is alike


@pytest.mark.parametrize(
    "value, scale", [("1", 1.0), ("1.0", 1.0), ("false", 1.0), ("true", 32**0.5), ("2", 2.0)]
)
def test_a_scale_of_one_is_one(value, scale):
    """In Python, 1 == True."""
    assert tiny_model(f"model.scale_embedding={value}").embedding_scale == scale
