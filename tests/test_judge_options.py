"""The options of judges: their configuration, and those that are refused before anything is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from minllm.errors import UserError
from minllm.grading.judge import Question
from minllm.grading.judge.endpoint import Endpoint
from minllm.grading.judge.local import Transformers
from minllm.schema.building import build
from minllm.schema.checking import check_node
from minllm.schema.groups import CONF

QUESTIONS = [Question("Grade this.", "a", {"type": "object"})]


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "judge.base_url=http://localhost:8000/v1"),
        ({"base_url": "http://localhost:1/v1"}, "judge.model="),
        ({"base_url": "https://api.openai.com/v1", "model": "m"}, "environment variable OPENAI_API_KEY"),
        ({"base_url": "localhost:8000"}, "not a URL"),
        ({"base_url": "http://[oops/v1"}, "not a URL"),
        ({"base_url": "http://me:pass1234@localhost/v1"}, "without user, password"),
        ({"base_url": "http://localhost/v1?api-key=pass1234"}, "without user, password"),
        ({"key": "sk-pass1234"}, "name of an environment variable"),
        ({"key": "gsk_pass1234"}, "name of an environment variable"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_asked(options, words, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError) as error:
        Endpoint(**options).ask(QUESTIONS)
    assert words in str(error.value) and "pass1234" not in str(error.value)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'minllm\[judge\]'"):
        Endpoint(base_url="http://localhost:1/v1", model="m").ask(QUESTIONS)


@pytest.mark.parametrize("option", ["openai", "transformers"])
def test_the_configuration_builds_the_defaults_of_the_class(option):
    node = OmegaConf.create({"judge": OmegaConf.load(Path(CONF, f"judge/{option}.yaml"))}).judge
    check_node(node, "judge", {"minllm"})
    assert build(node) == {"openai": Endpoint, "transformers": Transformers}[option]()
    node.attempts = 0
    with pytest.raises(UserError, match="judge.attempts must be a whole number of 1 or more"):
        check_node(node, "judge", {"minllm"})


def test_a_slash_at_the_end_of_the_url_changes_nothing():
    endpoints = [Endpoint(base_url=url, model="m") for url in ("http://h/v1", "http://h/v1/")]
    assert endpoints[0].identity() == endpoints[1].identity()
