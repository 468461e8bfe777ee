"""The program of docs/agent.md runs as it stands, at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import python
from tests.test_readme import ROOT, TINY, blocks, write_files

PAGE = (ROOT / "docs/agent.md").read_text(encoding="utf-8")


@pytest.mark.slow  # a verdict of two runs, and processes that import torch
def test_the_program_of_the_page_proposes_is_told_and_reads_the_ledger(tmp_path: Path):
    write_files(blocks("python", PAGE), tmp_path)
    program = (tmp_path / "agent.py").read_text()
    (tmp_path / "agent.py").write_text(program.replace("(1.5, 2.5, 3.5)", "(1.5,)"))
    words = ["search.rates=[]", "search.looks=[1]", "search.prompts=[]", "search.stories=0", "train.evals=1"]
    words += ["train.steps=2", "train.device=cpu", "memory.predict=false", "train.check=false"]
    done = python(str(tmp_path / "agent.py"), *TINY, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    headline, idea = done.stdout.splitlines()
    assert headline == "model/mlp=power_1_5 against a: inconclusive."
    assert idea == "model/mlp=power_1_5: inconclusive, among all ideas: no"
    lines = [json.loads(line) for line in (tmp_path / "outputs/ledger.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "reached"]
