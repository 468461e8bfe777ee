"""A judge run by `transformers` on a GPU."""

from __future__ import annotations

import pytest

from minllm.grading.judge.local import Transformers
from tests.test_judge_local import questions, random_llama

pytest.importorskip("transformers")
pytest.importorskip("jsonschema")


def test_a_judge_runs_on_the_gpu_and_agrees_with_the_cpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = str(random_llama(tmp_path / "tiny-llama"))
    on_gpu, on_cpu = (Transformers(model=folder, device=device, max_tokens=24) for device in ("auto", "cpu"))
    assert on_gpu.network.device.type == "cuda"
    prompts = [on_cpu.prompt(question) for question in questions("a", "a longer text")]
    first = [reply.text[:4] for reply in on_gpu.generate(prompts, 0, 0)]
    assert first == [reply.text[:4] for reply in on_cpu.generate(prompts, 0, 0)]
    assert on_gpu.ask(questions("a", "b")) == [None, None]
